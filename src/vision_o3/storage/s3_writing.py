"""How objects are stored in a bucket: whole, once, and read back in doubt."""

from __future__ import annotations

import contextvars
import threading
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog

from vision_o3.errors import (
    AlreadyExistsError,
    StorageError,
    TransientStorageError,
    VisionO3Error,
)
from vision_o3.storage.obstore_adapter import already_exists
from vision_o3.storage.s3_content import BytesContent, Content, FileContent, md5_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vision_o3.storage.retrying import Tries
    from vision_o3.storage.s3_client import BucketClient
    from vision_o3.storage.s3_reading import Reader

_TYPE = "application/octet-stream"
_TAKEN = "PreconditionFailed"
_NO_UPLOAD = "NoSuchUpload"
_BEGIN_AGAIN = {_NO_UPLOAD, "InvalidPart", "InvalidPartOrder"}
"""What no repetition of the same request mends."""
_REFUSED_HEADER = {
    "NotImplemented",
    "InvalidArgument",
    "InvalidRequest",
    "http-501",
}
"""How stores say that they know no conditional writes."""
_COMPARED_AT_ONCE = 8 << 20
MOST_PARTS = 10_000
"""Of one object; the limit of S3."""

_LOG = structlog.get_logger(__name__)


class Writer:
    """Puts objects into a bucket, never over another.

    Args:
        client: The bucket.
        prefix: How every key begins in it: empty, or ending in ``/``.
        reader: Reads from it, to see what became of a write whose answer was lost.
    """

    def __init__(
        self,
        client: BucketClient,
        prefix: str,
        reader: Reader,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._reader = reader
        options = client.options
        self.conditional = bool(options.conditional_put)
        """Whether objects put whole are guarded by the store itself."""
        self.conditional_parts = self.conditional
        """Whether objects put in parts are."""
        self._with_digest = False
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------- whole

    def put(self, key: str, content: Content) -> None:
        """Store an object; see ``ObjectStore.put_file``."""
        if content.size >= self._client.options.multipart_bytes:
            self._put_parts(key, content)
            return
        if not self.conditional:
            self._refuse_taken(key)
        tries = self._client.tries(f"put_object {key}")
        self._settle(
            key,
            content,
            tries,
            lambda: self._put_whole(key, content, conditional=self.conditional),
        )

    def _put_whole(self, key: str, content: Content, *, conditional: bool) -> None:
        self._send(
            "put_object",
            key,
            content,
            0,
            content.size,
            ContentType=_TYPE,
            **({"IfNoneMatch": "*"} if conditional else {}),
        )

    def _send(
        self,
        operation: str,
        key: str,
        content: Content,
        start: int,
        end: int,
        **parameters: Any,  # noqa: ANN401 - botocore's parameters
    ) -> dict[str, Any]:
        """Send bytes, with their MD5 if the bucket turns out to ask for it."""
        while True:
            with_digest = self._with_digest
            if with_digest:
                parameters["ContentMD5"] = md5_of(content, start, end)
            try:
                return self._client.ask(
                    operation,
                    key,
                    Key=self._prefix + key,
                    Body=content.body(start, end),
                    **parameters,
                )
            except (StorageError, OSError) as error:
                if isinstance(content, FileContent):
                    content.check()
                if _reason(error) == _TAKEN:
                    raise already_exists(key) from error
                if with_digest or not _asks_for_digest(error):
                    raise
                self._with_digest = True  # a bucket with Object Lock

    def _settle(
        self, key: str, content: Content, tries: Tries, write: Callable[[], object]
    ) -> None:
        """Write until it is known to have succeeded or failed.

        Once a try has failed, the object may be there in spite of it: what is found
        then is compared before it is called somebody else's.
        """
        while True:
            try:
                self._look_again(key, tries)
                write()
            except AlreadyExistsError:
                if tries.failed and self._is_there(key, content):
                    return
                raise
            except TransientStorageError as error:
                if _reason(error) in _BEGIN_AGAIN:
                    if tries.failed and self._is_there(key, content):
                        return
                    raise
                if not self._waited(tries, error):
                    if self._is_there_after_all(key, content):
                        return
                    raise
            else:
                return

    def _look_again(self, key: str, tries: Tries) -> None:
        """Before a further try that the store does not guard, see if the key is taken.

        By our own try whose answer was lost, or by somebody else meanwhile.
        """
        if tries.failed and not self.conditional:
            self._refuse_taken(key)

    def _waited(self, tries: Tries, error: TransientStorageError) -> bool:
        """Wait before the next try; false if there is none."""
        try:
            tries.wait_after(error)
        except TransientStorageError:
            return False
        return True

    def _is_there(self, key: str, content: Content, *, patient: bool = True) -> bool:
        """Say whether the object's bytes are this content."""
        found = self._reader.find(key, patient=patient)
        if found is None or found.size != content.size:
            return False
        for start in range(0, content.size, _COMPARED_AT_ONCE):
            end = min(start + _COMPARED_AT_ONCE, content.size)
            if self._reader.get_range(key, start, end) != content.read(start, end):
                return False
        return True

    def _is_there_after_all(self, key: str, content: Content) -> bool:
        try:
            return self._is_there(key, content, patient=False)
        except VisionO3Error:
            return False  # as little is known as before: the first error is raised

    def _refuse_taken(self, key: str) -> None:
        if self._reader.find(key) is not None:
            raise already_exists(key)

    # ---------------------------------------------------------------- in parts

    def _put_parts(self, key: str, content: Content) -> None:
        self._refuse_taken(key)  # before any byte is sent
        with self._upload(key) as upload:
            parts = self._send_parts(key, content, upload)
            tries = self._client.tries(f"complete_multipart_upload {key}")
            self._settle(
                key, content, tries, lambda: self._complete(key, upload, parts)
            )

    @contextmanager
    def _upload(self, key: str) -> Iterator[str]:
        """Begin an upload, and abort it if the body fails."""
        begun = self._client.insist(
            "create_multipart_upload", key, Key=self._prefix + key, ContentType=_TYPE
        )
        upload: str = self._client.field(begun, "UploadId", key)
        try:
            yield upload
        except BaseException:
            self._give_up(key, upload)
            raise

    def _give_up(self, key: str, upload: str) -> None:
        """Abort an upload if that works now; else see ``remove_unfinished``."""
        try:
            self._client.ask("abort_multipart_upload", key, **self._named(key, upload))
        except StorageError as error:
            if _reason(error) != _NO_UPLOAD:
                _LOG.warning("upload.left_unfinished", key=key, reason=_reason(error))

    def abort(self, key: str, upload: str) -> bool:
        """Abort an upload, for certain; false if there is none such any more.

        Raises:
            TransientStorageError, StorageError: The store failed.
        """
        named = self._named(key, upload)
        try:
            self._client.insist("abort_multipart_upload", key, **named)
        except StorageError as error:
            if _reason(error) != _NO_UPLOAD:
                raise
            return False
        return True

    def _named(self, key: str, upload: str) -> dict[str, str]:
        return {"Key": self._prefix + key, "UploadId": upload}

    def _send_parts(
        self, key: str, content: Content, upload: str
    ) -> list[dict[str, Any]]:
        """Send all parts, a few at a time, and return what names them."""
        options = self._client.options
        size = max(options.part_bytes, -(-content.size // MOST_PARTS))
        etags: dict[int, str] = {}
        running: dict[Future[str], int] = {}
        stopped = threading.Event()

        def send(number: int) -> str:
            return self._send_part(key, content, upload, number, size, stopped)

        try:
            for number in range(1, -(-content.size // size) + 1):
                if len(running) == options.parallel_parts:
                    _collect(running, etags)
                # Each in a context of its own, so that its log lines name the request.
                context = contextvars.copy_context()
                part = self._parts_pool().submit(context.run, send, number)
                running[part] = number
            while running:
                _collect(running, etags)
        finally:
            stopped.set()
            for future in running:
                future.cancel()
            wait(running)
        return [
            {"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)
        ]

    def _send_part(
        self,
        key: str,
        content: Content,
        upload: str,
        number: int,
        size: int,
        stopped: threading.Event,
    ) -> str:
        start = (number - 1) * size
        end = min(start + size, content.size)
        tries = self._client.tries(f"upload_part {number} {key}")
        while True:
            try:
                answer = self._send(
                    "upload_part",
                    key,
                    content,
                    start,
                    end,
                    UploadId=upload,
                    PartNumber=number,
                )
            except TransientStorageError as error:
                if stopped.is_set() or _reason(error) in _BEGIN_AGAIN:
                    raise
                tries.wait_after(error)
            else:
                etag: str = self._client.field(answer, "ETag", key)
                return etag

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]]) -> None:
        if self.conditional_parts:
            try:
                self._ask_to_complete(key, upload, parts, conditional=True)
            except StorageError as error:
                reason = _reason(error)
                if reason not in _REFUSED_HEADER:
                    raise
            else:
                return
            self._refuse_taken(key)
            self._ask_to_complete(key, upload, parts, conditional=False)
            _LOG.warning("store.condition_refused", key=key, reason=reason)
            self.conditional_parts = False
            return
        self._refuse_taken(key)
        self._ask_to_complete(key, upload, parts, conditional=False)

    def _ask_to_complete(
        self, key: str, upload: str, parts: list[dict[str, Any]], *, conditional: bool
    ) -> None:
        try:
            self._client.ask(
                "complete_multipart_upload",
                key,
                **self._named(key, upload),
                MultipartUpload={"Parts": parts},
                **({"IfNoneMatch": "*"} if conditional else {}),
            )
        except StorageError as error:
            if _reason(error) == _TAKEN:
                raise already_exists(key) from error
            raise

    def _parts_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    self._client.options.parallel_parts, "store-part"
                )
            return self._pool

    def close(self) -> None:
        """Free threads. May be called any number of times."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    # ------------------------------------------------------------- finding out

    def find_out(self) -> None:
        """Find out by a probe whether the store honours conditional writes.

        One byte is put, put again, put again in parts, and removed.

        Raises:
            TransientStorageError, StorageError: The store failed, or cannot be written.
        """
        key, content = f"probe/{uuid.uuid4().hex}", BytesContent(b"?")

        def put() -> None:
            self._put_whole(key, content, conditional=True)

        try:
            # The first must succeed; if its answer is lost, its repetition is refused,
            # which tells as much.
            self.conditional = self._refuses(key, put) or self._refuses(key, put)
            self.conditional_parts = self.conditional and self._refuses_parts(
                key, content
            )
        except StorageError:
            with suppress(StorageError):
                self._client.ask("delete_object", key, Key=self._prefix + key)
            raise
        self._client.insist("delete_object", key, Key=self._prefix + key)

    def _refuses_parts(self, key: str, content: Content) -> bool:
        with self._upload(key) as upload:
            parts = self._send_parts(key, content, upload)
            refused = self._refuses(
                key, lambda: self._ask_to_complete(key, upload, parts, conditional=True)
            )
        self._give_up(key, upload)
        return refused

    def _refuses(self, key: str, write: Callable[[], object]) -> bool:
        """Say whether a conditional write is refused as the key is taken."""
        tries = self._client.tries(f"probing {key}")
        while True:
            try:
                write()
            except TransientStorageError as error:
                if _reason(error) == _NO_UPLOAD:
                    return False  # completed by a try whose answer was lost
                tries.wait_after(error)
            except AlreadyExistsError:
                return True
            except StorageError as error:
                if _reason(error) in _REFUSED_HEADER:
                    return False
                raise
            else:
                return False


def _collect(running: dict[Future[str], int], etags: dict[int, str]) -> None:
    """Wait for a part, or more, and keep what names it."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        etags[running.pop(future)] = future.result()


def _reason(error: Exception) -> str | None:
    return getattr(error, "reason", None)


def _asks_for_digest(error: Exception) -> bool:
    """Say whether a bucket with Object Lock misses the MD5 of what is stored.

    The stores' codes for it differ, but all name the header.
    """
    return "content-md5" in str(error.__cause__).lower()
