"""A store in a directory: the embedded default.

Objects are plain read-only files at ``<root>/<key>``. Writing is done here rather
than by ``obstore``, whose local put neither syncs to disk nor takes a file by a link
(ADR 4): a file is synced, then linked into place, which fails if the key is taken,
then its directory is synced. Reading whole objects, listing and deleting are
``obstore``'s.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from obstore.store import LocalStore as ObstoreLocal

from vision_o3.errors import StorageError, StorageFullError
from vision_o3.storage.base import ObjectMeta, PutIfAbsent, StoreCapabilities
from vision_o3.storage.obstore_adapter import (
    STREAM_PIECE,
    ObstoreAdapter,
    already_exists,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

_INCOMING = ".incoming"
"""Where objects are written before they are linked into place; never listed."""
_LEFTOVER_AGE_S = 24 * 3600
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


class LocalStore(ObstoreAdapter):
    """Objects as files below a directory, which is made if absent.

    Raises:
        StorageError: The directory cannot be made or written.
    """

    capabilities = StoreCapabilities(PutIfAbsent.ATOMIC, presign=False)

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / _INCOMING
        with _disk_errors():
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        super().__init__(ObstoreLocal(str(root)))

    def put(self, key: str, content: bytes) -> None:
        """Store a small object; see ``ObjectStore.put``."""
        with _disk_errors(), self._incoming_file() as path:
            path.write_bytes(content)
            self._link(path, key)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file, by a hard link where possible; see ``ObjectStore.put_file``."""
        with _disk_errors():
            try:
                self._link(path, key)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                with self._incoming_file() as copy:
                    shutil.copyfile(path, copy)
                    self._link(copy, key)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)``; see ``ObjectStore.stream``."""
        await anyio.to_thread.run_sync(self._size_for, key, start, end)
        with translated(key):
            descriptor = os.open(self._root / key, os.O_RDONLY)
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
        for found in super().list(prefix):
            if not found.key.startswith(_INCOMING):
                yield found

    def _link(self, path: Path, key: str) -> None:
        """Make a file the object, durably, unless the key is taken."""
        path.chmod(0o444)
        _sync(path)
        target = self._root / key
        missing = [p for p in target.parents if not p.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileExistsError as error:
            raise already_exists(key) from error
        for directory in [target.parent, *(p.parent for p in missing)]:
            _sync(directory)

    @contextmanager
    def _incoming_file(self) -> Iterator[Path]:
        path = self._incoming / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove what writers killed in the middle of ``put`` left, after a day."""
        for path in self._incoming.iterdir():
            if path.stat().st_mtime < time.time() - _LEFTOVER_AGE_S:
                path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageFullError(
                "The object store's disk is full. Tell the gateway's operator.",
            ) from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"The object store's disk failed: {reason}.") from error
