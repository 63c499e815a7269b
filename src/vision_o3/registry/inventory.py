"""What a version consists of in the store, and what each object is verified by."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from vision_o3.content.dag import ContentHasher
from vision_o3.content.manifest import MAX_MANIFEST_SIZE
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import (
    DigestMismatchError,
    InvalidRangeError,
    LengthMismatchError,
    LimitExceededError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
)
from vision_o3.registry.records import MAX_RECORD_SIZE, decode_record
from vision_o3.registry.relaying import leaf_table
from vision_o3.registry.withdrawal_records import MAX_WITHDRAWAL_SIZE, decode_decision
from vision_o3.storage.keys import version_keys, withdrawal_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from vision_o3.content.cid import CID
    from vision_o3.content.dag import Dag
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectMeta

_AT_ONCE = 8 * UNIXFS_V1_2025.chunk_size
"""Bytes that the store is asked for at once."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Kind(Enum):
    """What an object is to its version."""

    ARTIFACT = "artifact"
    SIDECAR = "sidecar"
    MANIFEST = "manifest"
    INDEX = "index"
    WITHDRAWAL = "withdrawal"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a version. Two versions that share one have equal values."""

    key: str
    kind: Kind
    cid: CID
    """What names its bytes; the artifact's, for all but listings."""
    file_size: int
    """Bytes of the version's artifact."""


class ReadableStore(Protocol):
    """The part of a store that reads; see ``ObjectStore``."""

    def find(self, key: str) -> ObjectMeta | None:
        """See ``ObjectStore.find``."""
        ...

    def get(self, key: str, *, max_size: int) -> bytes:
        """See ``ObjectStore.get``."""
        ...

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        ...


def objects_of(version: Version) -> tuple[StoredObject, ...]:
    """Return the objects that a version names, its record last.

    Some may lie under another version's keys: content that was there already. Of a
    purged version nothing is left but what says so.
    """
    keys = version_keys(
        version.collection, version.name, version.version, version.file_format
    )
    found = [] if version.is_purged else content_of(version)
    if version.withdrawal is not None:
        place = version.collection, version.name, version.version
        key = withdrawal_key(*place, version.withdrawal.number)
        found.append((Kind.WITHDRAWAL, key, version.cid))
    found.append((Kind.RECORD, keys.record, version.cid))
    return tuple(
        StoredObject(key, kind, cid, version.file_size) for kind, key, cid in found
    )


def content_of(version: Version) -> list[tuple[Kind, str, CID]]:
    """Return what a version consists of, or consisted of before it was purged."""
    found = [(Kind.ARTIFACT, version.object_key, version.cid)]
    if version.sidecar_key is not None:
        found.append((Kind.SIDECAR, version.sidecar_key, version.cid))
    if version.manifest_key is not None and version.manifest_cid is not None:
        found.append((Kind.MANIFEST, version.manifest_key, version.manifest_cid))
    if version.index_key is not None and version.index_cid is not None:
        found.append((Kind.INDEX, version.index_key, version.index_cid))
    return found


def uncounted(_: int) -> None:
    """Take no note of what was read."""


def verify_object(
    store: ReadableStore,
    stored: StoredObject,
    pace: Callable[[int], None] = uncounted,
) -> None:
    """Return if the store holds exactly this object.

    Reads all of it, an artifact and a listing in pieces of 8 MiB, of which two or three
    are in memory. No other object is needed: an artifact is hashed whole, so a sidecar
    that is wrong does not hide whether it is right. Of a record, and of a withdrawal,
    is known that it could be the version's, not that it says the truth.

    Args:
        store: Where it lies.
        stored: The object.
        pace: Told of every read, with its bytes; may wait.

    Raises:
        IntegrityError: Its bytes are not what the CID names.
        ObjectNotFoundError: It is absent.
        TransientStorageError, StorageError: The store failed.
    """
    for _ in read_object(store, stored, pace):
        continue


def read_object(
    store: ReadableStore,
    stored: StoredObject,
    pace: Callable[[int], None] = uncounted,
) -> Iterator[bytes]:
    """Yield an object's bytes in order; **only the end says that they were right**.

    Raises:
        IntegrityError, ObjectNotFoundError, TransientStorageError, StorageError: As
            for ``verify_object``; at the latest where the iteration would end.
    """
    if stored.kind is Kind.ARTIFACT:
        yield from _read_named(store, stored, stored.file_size, pace)
    elif stored.kind in {Kind.MANIFEST, Kind.INDEX}:
        size = _size_of(store, stored)
        if size > MAX_MANIFEST_SIZE:
            raise _too_long(stored, MAX_MANIFEST_SIZE, size)
        yield from _read_named(store, stored, size, pace)
    else:
        content = _read_whole(store, stored)
        pace(len(content))
        if stored.kind is Kind.SIDECAR:
            leaf_table(stored.cid, stored.file_size, content)
        elif stored.kind is Kind.WITHDRAWAL:
            _check_named(decode_decision(content, stored.key).cid, stored)
        else:
            _check_named(decode_record(content, stored.key).version.cid, stored)
        yield content


def fetch_object(
    store: ReadableStore,
    stored: StoredObject,
    path: Path,
    pace: Callable[[int], None] = uncounted,
) -> int:
    """Write an object to a file, which is worth nothing after an error.

    Returns:
        Its bytes.

    Raises:
        IntegrityError, ObjectNotFoundError, TransientStorageError, StorageError: As
            for ``verify_object``.
        StorageFullError: The file's disk is full.
    """
    return write_file(path, read_object(store, stored, pace))


def write_file(path: Path, pieces: Iterable[bytes]) -> int:
    """Write a file; return its bytes.

    Raises:
        StorageFullError: Its disk is full.
        StorageError: It cannot be written.
        VisionO3Error: What the pieces raise.
    """
    size = 0
    try:
        with path.open("wb") as file:
            for piece in pieces:
                size += file.write(piece)
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                "The disk of the spool directory is full. Make room, or name another "
                "with VISION_O3_SPOOL_DIR.",
            ) from error
        raise StorageError(
            f"The spool directory cannot be written ({error.strerror})."
        ) from error
    return size


def read_dag(
    store: ReadableStore,
    stored: StoredObject,
    pace: Callable[[int], None] = uncounted,
) -> Dag:
    """Return the DAG of a stored artifact, verified; memory as a sidecar has bytes.

    Raises:
        IntegrityError, ObjectNotFoundError, TransientStorageError, StorageError: As
            for ``verify_object``.
    """
    hasher = ContentHasher()
    for piece in _pieces(store, stored, stored.file_size, pace):
        hasher.update(piece)
    return _checked(hasher, stored)


def _read_named(
    store: ReadableStore,
    stored: StoredObject,
    size: int,
    pace: Callable[[int], None],
) -> Iterator[bytes]:
    """Yield the bytes of an object that its CID names itself."""
    hasher = ContentHasher()
    for piece in _pieces(store, stored, size, pace):
        hasher.update(piece)
        yield piece
    _checked(hasher, stored)


def _checked(hasher: ContentHasher, stored: StoredObject) -> Dag:
    dag = hasher.finish()
    if dag.root != stored.cid:
        raise DigestMismatchError(
            f"The {stored.kind.value} {stored.key} is {dag.root}, not {stored.cid}.",
            expected=str(stored.cid),
            actual=str(dag.root),
        )
    return dag


def _pieces(
    store: ReadableStore,
    stored: StoredObject,
    size: int,
    pace: Callable[[int], None],
) -> Iterator[bytes]:
    """Yield the bytes of an object that must have ``size`` of them."""
    if size <= _AT_ONCE:  # one request instead of two
        try:
            content = store.get(stored.key, max_size=size)
        except LimitExceededError:
            raise _wrong_size(stored, size, _size_of(store, stored)) from None
        pace(len(content))
        if len(content) != size:
            raise _wrong_size(stored, size, len(content))
        yield content
        return
    actual = _size_of(store, stored)
    if actual != size:
        raise _wrong_size(stored, size, actual)
    for start in range(0, size, _AT_ONCE):
        end = min(start + _AT_ONCE, size)
        try:
            content = store.get_range(stored.key, start, end)
        except InvalidRangeError as error:  # it became shorter
            raise _wrong_size(stored, size, _size_of(store, stored)) from error
        pace(len(content))
        yield content


def _read_whole(store: ReadableStore, stored: StoredObject) -> bytes:
    """Return all of a sidecar, withdrawal or record."""
    limit = MAX_RECORD_SIZE
    if stored.kind is Kind.WITHDRAWAL:
        limit = MAX_WITHDRAWAL_SIZE
    if stored.kind is Kind.SIDECAR:
        limit = max_sidecar_size(stored.file_size)
    try:
        return store.get(stored.key, max_size=limit)
    except LimitExceededError:
        raise _too_long(stored, limit, _size_of(store, stored)) from None


def _check_named(named: CID, stored: StoredObject) -> None:
    """Raise unless a record or withdrawal names the content of its version."""
    if named != stored.cid:
        raise DigestMismatchError(
            f"The {stored.kind.value} {stored.key} is of {named}, not of {stored.cid}.",
            expected=str(stored.cid),
            actual=str(named),
        )


def _size_of(store: ReadableStore, stored: StoredObject) -> int:
    found = store.find(stored.key)
    if found is None:
        raise ObjectNotFoundError(
            f"The store has no object {stored.key}.", key=stored.key
        )
    return found.size


def _wrong_size(
    stored: StoredObject, expected: int, actual: int
) -> LengthMismatchError:
    return LengthMismatchError(
        f"The {stored.kind.value} {stored.key} has {actual} bytes, not {expected}.",
        expected=expected,
        actual=actual,
    )


def _too_long(stored: StoredObject, most: int, actual: int) -> LengthMismatchError:
    return LengthMismatchError(
        f"The {stored.kind.value} {stored.key} has {actual} bytes, and one of its "
        f"version has {most} at most.",
        expected=most,
        actual=actual,
    )
