"""Receive: bytes of an upload to a spool file, hashed on the way.

The event loop copies nothing but small pieces: it gathers what came until that is a
leaf. Hashing and
writing happen on worker threads, at most ``WINDOW`` leaves behind, so memory is flat
whatever the size.
A spool file is locked while its upload lives, so that what a killed gateway left
behind can be told from what is in use.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_o3.content.dag import Dag, DagBuilder
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.errors import LimitExceededError, StorageError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

WINDOW = 4
"""Leaves of one upload that may wait to be hashed and written (4 MiB)."""
WORKERS = 4
SMALL = 4 << 10
"""Bytes. Pieces below that are copied together: each held by itself takes more memory
than it has bytes, and a caller may send them one byte at a time."""
SUFFIX = ".upload"
LEAF = UNIXFS_V1_2025.chunk_size
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A wholly received upload: its file, complete, and what the bytes are named."""

    path: Path
    dag: Dag


class LeafWriter(ABC):
    """Takes bytes in order; each whole leaf is handed to a worker thread.

    Args:
        pool: The workers.
        offset: Where in the file the bytes begin: at a leaf's start.
    """

    def __init__(self, pool: ThreadPoolExecutor, offset: int = 0) -> None:
        self._pool = pool
        self._pending: deque[tuple[asyncio.Future[bytes], int]] = deque()
        self._leaf: list[memoryview] = []
        self._small = bytearray()
        self._filled = 0
        self._received = 0
        self._offset = offset

    @property
    def received(self) -> int:
        """Bytes taken so far."""
        return self._received

    @abstractmethod
    def _place(self, leaf: list[memoryview], offset: int) -> bytes:
        """Hash and write a leaf, on a worker; return its digest."""

    def _placed(self, digest: bytes, size: int) -> None:  # noqa: B027 - nothing to note
        """Take note of a leaf that was written; called in their order."""

    async def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes, which must not change any more.

        Waits while ``WINDOW`` leaves are in work.

        Raises:
            StorageFullError: The spool's disk is full.
            StorageError: The spool file cannot be written.
        """
        self._received += len(piece)
        view = memoryview(piece)
        while view:
            part = view[: LEAF - self._filled]
            if len(part) < SMALL:
                self._small += part
            else:
                self._join_small()
                self._leaf.append(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == LEAF:
                await self._submit()

    async def flush(self) -> None:
        """Return once every byte taken is hashed and written; they end the file.

        Raises:
            StorageFullError, StorageError: As for ``write``.
        """
        if self._filled:
            await self._submit()
        while self._pending:
            await self._collect()

    async def settle(self) -> None:
        """Wait until no worker touches the file any more, whatever happened."""
        await asyncio.gather(
            *(work for work, _ in self._pending), return_exceptions=True
        )

    async def _submit(self) -> None:
        """Hand the gathered leaf to a worker."""
        self._join_small()
        work = asyncio.get_running_loop().run_in_executor(
            self._pool, self._place, self._leaf, self._offset
        )
        self._pending.append((work, self._filled))
        self._offset += self._filled
        self._leaf, self._filled = [], 0
        if len(self._pending) > WINDOW:
            await self._collect()

    def _join_small(self) -> None:
        if self._small:
            self._leaf.append(memoryview(self._small))
            self._small = bytearray()

    async def _collect(self) -> None:
        """Wait for the oldest leaf in work."""
        work, size = self._pending.popleft()
        try:
            digest = await work
        except OSError as error:
            raise spool_error(error) from error
        self._placed(digest, size)


class SpoolWriter(LeafWriter):
    """Takes the bytes of one upload, in order. Made by ``Spool.open``."""

    def __init__(
        self, spool: Spool, path: Path, descriptor: int, pool: ThreadPoolExecutor
    ) -> None:
        super().__init__(pool)
        self._spool = spool
        self._path = path
        self._descriptor = descriptor
        self._builder = DagBuilder(UNIXFS_V1_2025)

    async def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes; see ``LeafWriter.write``.

        Raises:
            LimitExceededError: More than the largest accepted file.
            StorageFullError, StorageError: As there.
        """
        self._spool.check_size(self._received + len(piece))
        await super().write(piece)

    async def finish(self) -> Spooled:
        """Return the received file once every byte is hashed and written.

        Raises:
            StorageFullError, StorageError: As for ``write``.
        """
        await self.flush()
        return Spooled(self._path, self._builder.finish())

    def _place(self, leaf: list[memoryview], offset: int) -> bytes:
        digest = hashlib.sha256()
        for part in leaf:
            digest.update(part)
            write_at(self._descriptor, part, offset)
            offset += len(part)
        return digest.digest()

    def _placed(self, digest: bytes, size: int) -> None:
        self._builder.add_leaf(digest, size)


class Spool:
    """The directory where uploads are received.

    Args:
        directory: Made if absent. On the file system of a local store, so that
            storing is a link and not a second copy.
        max_size: The largest accepted file, in bytes.
        min_free: Bytes that an upload must leave free on the disk.
    """

    def __init__(self, directory: Path, *, max_size: int, min_free: int) -> None:
        self._directory = directory
        self._max_size = max_size
        self._min_free = min_free
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="spool")
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def directory(self) -> Path:
        """Where the uploads are."""
        return self._directory

    @property
    def workers(self) -> ThreadPoolExecutor:
        """The threads that hash and write leaves, of all uploads together."""
        return self._pool

    def check_size(self, size: int) -> None:
        """Raise unless a file of ``size`` bytes may be uploaded.

        Raises:
            LimitExceededError: It is too large.
        """
        if size > self._max_size:
            raise LimitExceededError(
                f"The file is larger than the {self._max_size} bytes that this "
                "gateway accepts (VISION_O3_MAX_UPLOAD_BYTES).",
                limit=self._max_size,
            )

    @asynccontextmanager
    async def open(self, expected_size: int = 0) -> AsyncIterator[SpoolWriter]:
        """Yield a writer to a new spool file, which is gone when the block ends.

        Args:
            expected_size: Bytes that will come, as far as known: refused at once
                when there is no room for them.

        Raises:
            LimitExceededError: The expected size is over the limit.
            StorageFullError: The disk has no room.
            StorageError: The spool directory cannot be written.
        """
        self.check_size(expected_size)
        try:
            self._check_free(expected_size)
            path, descriptor = self._create()
        except OSError as error:
            raise spool_error(error) from error
        try:
            writer = SpoolWriter(self, path, descriptor, self._pool)
            try:
                yield writer
            finally:
                await writer.settle()
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    @contextmanager
    def scratch(self, expected_size: int = 0) -> Iterator[Path]:
        """Yield a new, empty file beside the uploads, gone when the block ends.

        Args:
            expected_size: Bytes that will be written, as far as known.

        Raises:
            StorageFullError, StorageError: It cannot be made.
        """
        try:
            if expected_size:
                self._check_free(expected_size)
            path, descriptor = self._create()
        except OSError as error:
            raise spool_error(error) from error
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def remove_leftovers(self) -> int:
        """Remove files of uploads whose process is gone; return how many."""
        removed = 0
        for path in self._directory.glob(f"*{SUFFIX}"):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                removed += 1
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
        return removed

    def close(self) -> None:
        """End the worker threads, after what they have in work."""
        self._pool.shutdown()

    def _create(self) -> tuple[Path, int]:
        """Return a new, locked file that has a name."""
        while True:
            path = self._directory / f"{uuid.uuid4().hex}{SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
            os.close(descriptor)  # swept before the lock was ours

    def check_free(self, expected_size: int) -> None:
        """Raise unless the disk has room for so many more bytes.

        Raises:
            StorageFullError, StorageError: It has not, or does not answer.
        """
        try:
            self._check_free(expected_size)
        except OSError as error:
            raise spool_error(error) from error

    def _check_free(self, expected_size: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if free < self._min_free + expected_size:
            raise OSError(errno.ENOSPC, "too little space for this upload")


def write_at(descriptor: int, piece: bytes | memoryview, offset: int) -> None:
    """Write all of a piece at an offset.

    Raises:
        OSError: The disk refuses.
    """
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def spool_error(error: OSError) -> StorageError:
    """Return what an error of the spool's disk means to the caller."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StorageFullError(
            "The gateway has no disk space left to receive this upload. "
            "Try again later, or tell its operator.",
        )
    return StorageError("The gateway cannot write its spool directory.")
