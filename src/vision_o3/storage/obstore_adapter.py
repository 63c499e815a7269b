"""What all adapters over ``obstore`` share; each adds how objects are written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors

from vision_o3.errors import (
    AlreadyExistsError,
    InvalidRangeError,
    LimitExceededError,
    ObjectNotFoundError,
    StorageError,
)
from vision_o3.storage.base import ObjectMeta
from vision_o3.storage.keys import is_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

STREAM_PIECE = 1 << 20
"""Bytes yielded at a time by ``stream``: one leaf, so that none is cut or copied."""


class ObstoreAdapter:
    """The reading half of the store contract, and deletion, by ``obstore``."""

    def __init__(self, backend: Any) -> None:  # noqa: ANN401 - obstore's union of stores
        self._backend = backend

    def get(self, key: str, *, max_size: int) -> bytes:
        """Return a whole object; see ``ObjectStore.get``."""
        self._check(key)
        with translated(key):
            answer = obstore.get(self._backend, key)
            if answer.meta["size"] > max_size:
                raise too_large(key, answer.meta["size"], max_size)
            return bytes(answer.bytes())

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``; see ``ObjectStore.get_range``."""
        size = self._size_for(key, start, end)
        if start == end:
            return b""
        with translated(key):
            content = bytes(obstore.get_range(self._backend, key, start=start, end=end))
        if len(content) != end - start:
            raise StorageError(
                f"The store answered {len(content)} bytes of {key} ({size} bytes) "
                f"when asked for {start} to {end}.",
            )
        return content

    def open_file(self, key: str) -> int | None:  # noqa: ARG002
        """Return ``None``: objects are not files here."""
        return None

    def find(self, key: str) -> ObjectMeta | None:
        """Return what is known of an object; see ``ObjectStore.find``."""
        self._check(key)
        try:
            with translated(key):
                return object_meta(obstore.head(self._backend, key))
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield objects by prefix; see ``ObjectStore.list``."""
        # obstore matches whole path segments: ask for the folder, compare the text.
        folder, _, _ = prefix.rpartition("/")
        if folder and not is_key(folder):
            return
        with translated(prefix):
            for page in obstore.list(self._backend, folder or None):
                for found in page:
                    if found["path"].startswith(prefix):
                        yield object_meta(found)

    def delete(self, key: str) -> None:
        """Remove an object; see ``ObjectStore.delete``."""
        self._check(key)
        try:
            with translated(key):
                obstore.delete(self._backend, key)
        except ObjectNotFoundError:
            return

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:  # noqa: ARG002
        """Return ``None``: no other server serves these objects."""
        return None

    def presign_put(self, key: str, *, ttl_s: int) -> str | None:  # noqa: ARG002
        """Return ``None``: no other server stores these objects."""
        return None

    def remove_unfinished(self, prefix: str, *, before: datetime) -> int:  # noqa: ARG002
        """Remove nothing: writers leave nothing here that later calls could see."""
        return 0

    def close(self) -> None:
        """Free nothing: there are no connections."""

    def _check(self, key: str) -> None:
        check_key(key)

    def _size_for(self, key: str, start: int, end: int) -> int:
        """Return the object's size if the range lies within it."""
        found = self.find(key)
        if found is None:
            raise not_found(key)
        if not 0 <= start <= end <= found.size:
            raise outside(key, start, end, found.size)
        return found.size


@contextmanager
def translated(key: str) -> Iterator[None]:
    """Turn obstore's errors about a key into ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise not_found(key) from error
    except obstore_errors.AlreadyExistsError as error:
        raise already_exists(key) from error
    except (obstore_errors.BaseError, OSError) as error:
        raise StorageError(f"The store failed on {key or 'listing'}.") from error


def check_key(key: str) -> None:
    """Refuse what is not a key, before it reaches a store."""
    if not is_key(key):
        raise StorageError(f"{key!r} is not a key of an object.", key=key)


def not_found(key: str) -> ObjectNotFoundError:
    """Return the error for an absent object."""
    return ObjectNotFoundError(f"The store has no object {key}.", key=key)


def already_exists(key: str) -> AlreadyExistsError:
    """Return the error for a key that is taken."""
    return AlreadyExistsError(f"The store has an object {key} already.", key=key)


def outside(key: str, start: int, end: int, size: int) -> InvalidRangeError:
    """Return the error for a range that is not within an object."""
    return InvalidRangeError(
        f"The range {start} to {end} is not within the {size} bytes of {key}.",
        size=size,
    )


def too_large(key: str, size: int, limit: int) -> LimitExceededError:
    """Return the error for an object of more bytes than expected."""
    return LimitExceededError(
        f"The object {key} has {size} bytes, more than the {limit} expected.",
        limit=limit,
    )


def object_meta(found: Any) -> ObjectMeta:  # noqa: ANN401 - obstore's TypedDict is type-only
    """Return what ``obstore`` says of an object."""
    return ObjectMeta(found["path"], found["size"], found["last_modified"])
