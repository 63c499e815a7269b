"""A store in a directory: the embedded default.

Objects are plain read-only files at ``<root>/<key>``. Writing is done here rather
than by ``obstore``, whose local put neither syncs to disk nor takes a file by a link
(ADR 4): a file is synced, then linked into place, which fails if the key is taken,
then its directories are synced. Listing is done here because ``obstore``'s follows
symbolic links. Reading whole objects and deleting are ``obstore``'s.

The root may be a symbolic link. Below it none is followed: what lies behind one is
not listed, and asking for it or writing there is a ``StorageError``. This guards
against a link that was put there, not against one who changes links during a call.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio.to_thread
from obstore.store import LocalStore as ObstoreLocal

from vision_o3.errors import StorageError, StorageFullError, TransientStorageError
from vision_o3.storage.base import ObjectMeta, PutIfAbsent, StoreCapabilities
from vision_o3.storage.keys import is_key
from vision_o3.storage.obstore_adapter import (
    STREAM_PIECE,
    ObstoreAdapter,
    already_exists,
    not_found,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

_INCOMING = ".incoming"
"""Where objects are written before they are linked into place; never a key."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAY_PASS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class LocalStore(ObstoreAdapter):
    """Objects as files below a directory, which is made if absent.

    Raises:
        StorageError: The directory cannot be made or written, or its file system has
            no hard links.
    """

    capabilities = StoreCapabilities(PutIfAbsent.ATOMIC, presign=False)

    def __init__(self, root: Path) -> None:
        with _disk_errors():
            _make_directory(root)
            self._root = root.resolve()
            self._incoming = self._root / _INCOMING
            self._incoming.mkdir(exist_ok=True)
            self._remove_leftovers()
        with suppress(StorageFullError):  # a full disk still serves
            self._try_linking()
        super().__init__(ObstoreLocal(str(self._root)))

    def put(self, key: str, content: bytes) -> None:
        """Store a small object; see ``ObjectStore.put``."""
        self._check(key)
        with _disk_errors(), self._incoming_file() as path:
            path.write_bytes(content)
            self._link(path, key)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file, by a hard link where possible; see ``ObjectStore.put_file``."""
        self._check(key)
        with _disk_errors():
            path = path.resolve(strict=True)
            if path.stat().st_dev == self._root.stat().st_dev:
                try:
                    self._link(path, key)
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                else:
                    return
            with self._incoming_file() as copy:
                shutil.copyfile(path, copy)
                self._link(copy, key)

    def open_file(self, key: str) -> int:
        """Return a descriptor of the object's file; see ``ObjectStore.open_file``."""
        self._check(key)
        with _disk_errors():
            try:
                descriptor = os.open(self._root / key, os.O_RDONLY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise not_found(key) from error
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise not_found(key)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)``; see ``ObjectStore.stream``.

        Each piece is one ``pread`` on a thread. From a 512 MiB file in memory, on two
        cores, asyncio or uvloop, medians of five: 3.8 to 5.9 GB/s; ``obstore``'s ranges
        with one read ahead 3.4 to 3.9, its stream 0.3 (2026-11-24). Reading ahead here
        gained nothing.
        """
        await anyio.to_thread.run_sync(self._size_for, key, start, end)
        descriptor = self.open_file(key)
        try:
            while start < end:
                with _disk_errors():
                    piece = await anyio.to_thread.run_sync(
                        os.pread, descriptor, min(STREAM_PIECE, end - start), start
                    )
                if not piece:
                    raise StorageError(f"The object {key} became shorter.")
                start += len(piece)
                yield piece
        finally:
            os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield objects by prefix; see ``ObjectStore.list``."""
        folder, _, _ = prefix.rpartition("/")
        if folder and (not is_key(folder) or self._is_behind_link(folder)):
            return
        top = self._root / folder
        for directory, folders, files in os.walk(top, onerror=_listing_error):
            folders[:] = filter(is_key, folders)
            parts = os.path.relpath(directory, self._root)
            for name in files:
                key = name if parts == os.curdir else f"{parts}/{name}"
                if key.startswith(prefix) and is_key(key):
                    yield from _metadata(key, os.path.join(directory, name))  # noqa: PTH118 - of many files, the fast way

    def _check(self, key: str) -> None:
        super()._check(key)
        if self._is_behind_link(key):
            raise StorageError(
                f"The object {key} lies behind a symbolic link, which is not followed.",
                key=key,
            )

    def _is_behind_link(self, key: str) -> bool:
        path = self._root / key
        return os.path.realpath(path) != str(path)

    def _link(self, path: Path, key: str) -> None:
        """Make a file the object, durably, unless the key is taken."""
        with path.open("rb") as file:
            os.utime(file.fileno())
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        taken: FileExistsError | None = None
        try:
            os.link(path, target)
        except FileExistsError as error:
            taken = error
        # Also where the key is taken: whoever linked it may have died before this.
        for directory in target.parents:
            _sync(directory)
            if directory == self._root:
                break
        if taken is not None:
            raise already_exists(key) from taken

    @contextmanager
    def _incoming_file(self) -> Iterator[Path]:
        """Yield a new file, locked while in use, so that leftovers can be told."""
        while True:
            path = self._incoming / uuid.uuid4().hex
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)  # taken for a leftover before the lock was ours
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _remove_leftovers(self) -> None:
        """Remove what writers killed in the middle of ``put`` left: unlocked files."""
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)

    def _try_linking(self) -> None:
        """Find out now, not at the first upload, whether objects can be stored."""
        with _disk_errors(), self._incoming_file() as path:
            try:
                os.link(path, path.with_suffix(".link"))
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                raise StorageError(
                    f"The file system of {self._root} has no hard links, without "
                    "which objects cannot be kept from being replaced. Name a "
                    "directory on another (ext4, XFS, Btrfs, APFS, …).",
                ) from error
            path.with_suffix(".link").unlink(missing_ok=True)


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, durably."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync(each.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _metadata(key: str, path: str) -> Iterator[ObjectMeta]:
    """Yield what is known of a file, or nothing if it is no plain file (any more)."""
    with _disk_errors():
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return
    if stat.S_ISREG(status.st_mode):
        modified_at = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
        yield ObjectMeta(key, status.st_size, modified_at)


def _listing_error(error: OSError) -> None:
    """Pass over directories that are not there; raise for any that cannot be read."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        with _disk_errors():
            raise error


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                "The object store's disk is full. Tell the gateway's operator.",
            ) from error
        family = TransientStorageError if error.errno in _MAY_PASS else StorageError
        reason = error.strerror or type(error).__name__
        raise family(f"The object store's disk failed: {reason}.") from error
