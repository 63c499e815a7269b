"""How objects of a bucket are read: measured, and again where an answer broke off."""

from __future__ import annotations

import asyncio
import atexit
import functools
import time
from contextlib import aclosing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

import anyio.to_thread
import obstore
from obstore import exceptions as obstore_errors
from obstore.store import S3Store as ObstoreS3

from vision_o3.errors import (
    ObjectNotFoundError,
    StorageError,
    TransientStorageError,
)
from vision_o3.storage.obstore_adapter import (
    STREAM_PIECE,
    not_found,
    object_meta,
    outside,
    too_large,
)
from vision_o3.storage.retrying import Tries
from vision_o3.storage.s3_client import USER_AGENT, S3Options
from vision_o3.storage.s3_errors import Failure, error_of, failure_of_obstore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from vision_o3.storage.base import ObjectMeta

_T = TypeVar("_T")
_NO_LIMIT = timedelta(days=1)
"""For a whole answer, as a device may take its time; stalls are found sooner."""
_IDLE = timedelta(seconds=30)
"""How long an unused connection is kept."""
_LEAVE_S = 0.05
_NO_BUCKET = "NoSuchBucket"
_OUT_OF_RANGE = 416


class Reader:
    """Reads objects below a prefix of a bucket; safe in any thread and event loop."""

    def __init__(self, bucket: str, prefix: str, options: S3Options) -> None:
        self._options = options
        self._backend = _open_backend(bucket, prefix, options)

    def get(self, key: str, max_size: int) -> bytes:
        """Return a whole object; see ``ObjectStore.get``."""

        def read() -> bytes:
            answer = obstore.get(self._backend, key)
            size = answer.meta["size"]
            if size > max_size:
                raise too_large(key, size, max_size)
            return self._measured(key, bytes(answer.bytes()), size)

        return self._insist(f"get_object {key}", key, read)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``; see ``ObjectStore.get_range``."""
        if not 0 <= start < end:
            return self._nothing(key, start, end)

        def read() -> bytes:
            try:
                answer = obstore.get(
                    self._backend, key, options={"range": (start, end)}
                )
            except obstore_errors.BaseError as error:
                self._refuse_if_outside(key, start, end, error)
                raise
            self._check_range(key, start, end, answer)
            return self._measured(key, bytes(answer.bytes()), end - start)

        return self._insist(f"get_object {key}", key, read)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)``; see ``ObjectStore.stream``.

        One request, and one more from where an answer broke off. All pieces but the
        last have exactly 1 MiB.
        """
        if not 0 <= start < end:
            await anyio.to_thread.run_sync(self._nothing, key, start, end)
            return
        _leave_in_peace()
        what = f"get_object {key}"
        tries = self._tries(what)
        version: str | None = None
        while start < end:
            begun = start
            try:
                with self._translated(key):
                    answer = await self._begin(key, start, end)
                    found = answer.meta["e_tag"]
                    if version not in {None, found}:
                        raise StorageError(
                            f"The object {key} was replaced while it was read.",
                            reason="replaced",
                        )
                    version = found
                async with aclosing(self._pieces(key, start, end, answer)) as pieces:
                    async for piece in pieces:
                        start += len(piece)
                        yield piece
            except TransientStorageError as error:
                if start > begun:  # a new budget, however long it went well
                    tries = self._tries(what)
                await asyncio.sleep(tries.pause_after(error))

    async def _begin(self, key: str, start: int, end: int) -> Any:  # noqa: ANN401 - obstore's GetResult
        try:
            answer = await obstore.get_async(
                self._backend, key, options={"range": (start, end)}
            )
        except obstore_errors.BaseError as error:
            await anyio.to_thread.run_sync(
                self._refuse_if_outside, key, start, end, error
            )
            raise
        self._check_range(key, start, end, answer)
        return answer

    async def _pieces(
        self,
        key: str,
        start: int,
        end: int,
        answer: Any,  # noqa: ANN401 - obstore's GetResult
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the body of an answer, cut anew: its pieces are of any size."""
        left = end - start
        held: list[memoryview] = []
        size = 0
        received = answer.stream(min_chunk_size=STREAM_PIECE).__aiter__()
        while left:
            with self._translated(key):
                try:
                    view = memoryview(await anext(received))
                except StopAsyncIteration:
                    raise self._failed(key, Failure("short")) from None
            while view:
                wanted = min(STREAM_PIECE, left) - size
                held.append(view[:wanted])
                size += len(held[-1])
                view = view[wanted:]
                if size == min(STREAM_PIECE, left):
                    piece = held[0] if len(held) == 1 else b"".join(held)
                    left -= size
                    held, size = [], 0
                    if not left and view:
                        raise self._failed(key, Failure("ranges"))
                    yield piece

    def find(self, key: str, *, patient: bool = True) -> ObjectMeta | None:
        """Return what is known of an object, in one try unless patient."""

        def read() -> ObjectMeta:
            return object_meta(obstore.head(self._backend, key))

        try:
            if patient:
                return self._insist(f"head_object {key}", key, read)
            with self._translated(key):
                return read()
        except ObjectNotFoundError:
            return None

    def presign(self, method: Literal["GET", "PUT"], key: str, ttl_s: int) -> str:
        """Return a URL for one request that needs no other signature."""
        lifetime = timedelta(seconds=ttl_s)
        with self._translated(key):
            return obstore.sign(self._backend, method, key, expires_in=lifetime)

    def _insist(self, what: str, key: str, read: Callable[[], _T]) -> _T:
        tries = self._tries(what)
        while True:
            try:
                with self._translated(key):
                    return read()
            except TransientStorageError as error:
                tries.wait_after(error)

    def _tries(self, what: str) -> Tries:
        return Tries(what, self._options.retry_budget_s)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn obstore's errors about a key into ours."""
        try:
            yield
        except (obstore_errors.BaseError, OSError) as error:
            failure = failure_of_obstore(error)
            absent = isinstance(error, FileNotFoundError)
            if absent and failure.reason != _NO_BUCKET:
                raise not_found(key) from error
            raise self._failed(key, failure) from error

    def _failed(self, key: str, failure: Failure) -> StorageError:
        return error_of(failure, self._options.host, key)

    def _measured(self, key: str, content: bytes, size: int) -> bytes:
        if len(content) != size:
            raise self._failed(key, Failure("short"))
        return content

    def _check_range(self, key: str, start: int, end: int, answer: Any) -> None:  # noqa: ANN401 - obstore's GetResult
        """Refuse an answer that has another range than was asked for."""
        size = answer.meta["size"]
        if end > size:
            raise outside(key, start, end, size)
        if tuple(answer.range) != (start, end):
            raise self._failed(key, Failure("ranges"))

    def _refuse_if_outside(
        self, key: str, start: int, end: int, error: Exception
    ) -> None:
        """Raise the error for a range that begins at the object's end or behind it."""
        if failure_of_obstore(error).status == _OUT_OF_RANGE:
            size = self._size(key)
            if start >= size:
                raise outside(key, start, end, size) from error

    def _nothing(self, key: str, start: int, end: int) -> bytes:
        """Return an empty range, if the object has it."""
        size = self._size(key)
        if not 0 <= start <= end <= size:
            raise outside(key, start, end, size)
        return b""

    def _size(self, key: str) -> int:
        found = self.find(key)
        if found is None:
            raise not_found(key)
        return found.size


@functools.cache
def _leave_in_peace() -> None:
    """Let obstore's threads finish before the interpreter ends, from now on.

    A thread of it that hands over the last piece waits for the interpreter's lock for
    a moment more; if the interpreter ends then, the process aborts. Seen with obstore
    0.12 in 5 of 25 commands that ended right after a stream, and in none with this
    pause, during which the lock is free (2026-11-25).
    """
    atexit.register(time.sleep, _LEAVE_S)


def _open_backend(bucket: str, prefix: str, options: S3Options) -> Any:  # noqa: ANN401 - obstore's store
    """Return obstore's store; every option is set, or the environment's would count."""
    url = urlsplit(options.url)
    credential: dict[str, Any] = {
        "access_key_id": options.access_key_id,
        "secret_access_key": options.secret_access_key,
        "token": options.session_token,
        "expires_at": None,
    }
    try:
        return ObstoreS3(
            bucket,
            prefix=prefix or None,
            config={"aws_endpoint_url_s3": options.url},
            endpoint=options.url,
            region=options.region,
            virtual_hosted_style_request=False,
            skip_signature=False,
            request_payer=False,
            s3_express=False,
            credential_provider=lambda: credential,  # type: ignore[arg-type]
            client_options={
                "allow_http": url.scheme == "http",
                "user_agent": USER_AGENT,
                "timeout": _NO_LIMIT,
                "connect_timeout": timedelta(seconds=options.connect_timeout_s),
                "read_timeout": timedelta(seconds=options.read_timeout_s),
                "pool_idle_timeout": _IDLE,
                # No proxy: one that is named but used for no host, as otherwise the
                # environment's would be.
                "proxy_url": "http://proxy.invalid",
                "proxy_excludes": url.hostname or "",
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        )
    except (obstore_errors.BaseError, ValueError) as error:
        raise StorageError(
            f"There is no object store at {options.host}: check the endpoint and the "
            "bucket's name.",
            reason="endpoint",
        ) from error
