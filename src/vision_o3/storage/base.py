"""The store contract: what every adapter promises, checked by one test suite.

A store maps keys (``models/yolo/v1.onnx``; ``keys.is_key`` says what is one) to
immutable objects. No key may be a folder of another: not ``a`` beside ``a/b``. All
methods but ``stream`` block and may be called from any thread; ``stream`` is for
relaying large objects from an event loop. Adapters let only errors of
``vision_o3.errors`` out; to what is not a key the answer is ``StorageError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from datetime import datetime
    from pathlib import Path


class PutIfAbsent(Enum):
    """How a store keeps a second writer from replacing an object."""

    ATOMIC = "atomic"
    """The store itself refuses: safe against any other writer."""
    EMULATED = "emulated"
    """Looked up first, then written: safe only under the caller's lease."""


@dataclass(frozen=True, slots=True)
class StoreCapabilities:
    """What this store can do beyond the contract's minimum."""

    put_if_absent: PutIfAbsent
    presign: bool
    """``presign_get`` and ``presign_put`` answer a URL rather than ``None``."""


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """What the store knows of one object, without reading it."""

    key: str
    size: int
    modified_at: datetime
    """When the object was written, by the store's clock (aware, UTC)."""


class ObjectStore(Protocol):
    """Immutable objects by key."""

    @property
    def capabilities(self) -> StoreCapabilities:
        """Say what this store can do; constant for its lifetime."""
        ...

    def put(self, key: str, content: bytes) -> None:
        """Store a small object, whole or not at all, unless the key is taken.

        Raises:
            AlreadyExistsError: The key is taken; what it holds is unchanged, and as
                durable as if it had been stored by this call.
            StorageFullError: No space left.
            TransientStorageError: May succeed later; the object may be there.
            StorageError: Any other failure.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's bytes, whole or not at all, unless the key is taken.

        Durable when it returns. The store may take the file itself (by a hard
        link) instead of a copy: the caller must not write to ``path`` any more, but
        may remove it. Memory is O(part), never O(file).

        Raises:
            AlreadyExistsError, StorageFullError, TransientStorageError,
            StorageError: As for ``put``.
        """
        ...

    def get(self, key: str, *, max_size: int) -> bytes:
        """Return a whole object of at most ``max_size`` bytes.

        Raises:
            ObjectNotFoundError: No such key.
            LimitExceededError: The object is larger than ``max_size``.
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``, exactly ``end - start`` of them.

        Raises:
            ObjectNotFoundError: No such key.
            InvalidRangeError: Not ``0 <= start <= end <= size``.
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)`` in order, in pieces of 1 B to 8 MiB.

        Memory is O(piece). A piece never changes: the caller may keep it. ``aclose``
        frees everything at any time. Errors, as for ``get_range``, come from the
        iteration.
        """
        ...

    def open_file(self, key: str) -> int | None:
        """Return a descriptor of the object's file, if it is one on this machine.

        For reading at any place with less work than by ``stream``. The caller closes
        it. ``None`` from stores whose objects lie elsewhere, whatever the key.

        Raises:
            ObjectNotFoundError: No such key.
            StorageError: The disk failed.
        """
        ...

    def find(self, key: str) -> ObjectMeta | None:
        """Return what the store knows of the object, or ``None`` if absent.

        Raises:
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield every object whose key starts with ``prefix``, in no set order.

        The prefix is text, not a folder: ``a/b`` also finds ``a/bc``. Nothing
        half-written is listed. Pages are fetched as needed.

        Raises:
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; an absent key is no error. May be undone by power loss.

        Raises:
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL that serves the object for ``ttl_s`` seconds, or ``None``.

        ``None`` where ``capabilities.presign`` is false. The URL is a secret.
        """
        ...

    def presign_put(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL that stores what is PUT to it within ``ttl_s`` seconds.

        ``None`` where ``capabilities.presign`` is false. The URL is a secret. It may
        replace an object: give it out only for a key that nobody else writes.
        """
        ...

    def remove_unfinished(self, prefix: str, *, before: datetime) -> int:
        """Remove what writers that died left of objects that never came to be.

        Only of keys that start with ``prefix`` (text, as for ``list``), and only what
        was begun before a moment by the store's clock. A writer that is still at work
        on it fails, and its object does not come to be.

        Returns:
            How many were removed.

        Raises:
            TransientStorageError, StorageError: The store failed.
        """
        ...

    def close(self) -> None:
        """Free connections. May be called any number of times."""
        ...


@runtime_checkable
class KeepsHistory(Protocol):
    """A store that may keep what was replaced or deleted, and can be rid of it."""

    def erase_history(self, prefix: str) -> int:
        """Delete for good what objects were before they were replaced or deleted.

        Of keys that start with ``prefix`` (text, as for ``list``). What the objects are
        now stays. Uses the right to pass over a retention, where there is one.

        Returns:
            How many versions and marks were deleted.

        Raises:
            TransientStorageError: May succeed later; some may be deleted.
            StorageError: The store does not tell of them, or does not let go of one.
        """
        ...
