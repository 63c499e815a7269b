"""Artifacts that are asked for, kept on the gateway's disk: the store is asked once.

An artifact is kept in blocks of eight leaves, each a file ``<cid>/<number>`` that has
its name only when it is whole. Whoever asks for a block that is not there starts
reading it from the store; all who ask meanwhile, in this process, read the same block
as it grows. Other processes wait for the file: the one that reads holds a lock on it.

Every leaf is verified before it is written and again when it is handed on, so damage on
this disk costs one more read from the store, and nothing has to be written durably.
Blocks that were not used for longest go first. The directory may be shared by the
gateways of one machine, and thrown away at any time.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import uuid
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakValueDictionary, ref

import structlog

from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.errors import StorageError, VisionO3Error
from vision_o3.registry.local_files import LocalFile
from vision_o3.registry.watching import UNWATCHED, Event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from vision_o3.content.cid import CID
    from vision_o3.content.leaves import LeafTable
    from vision_o3.registry.values import Version
    from vision_o3.registry.watching import Watcher

BLOCK = 8 * UNIXFS_V1_2025.chunk_size
"""Bytes in every block but an artifact's last. A request to the store for each."""
_AHEAD = 2
"""Blocks that are read from the store beyond the one that is handed on."""
_FETCHES = 32
"""Blocks that are read from the store at the same time: two or three leaves of memory
each. Others wait for their turn; nothing more is read ahead then."""
_QUEUE = 1000
"""Blocks in work or waiting for it; whoever needs another one reads past the cache."""
_SCAN_EVERY = 16
"""Blocks after which the directory is looked through, as other processes write too."""
_POLL_S = 0.02
_PATIENCE_S = 15.0
"""How long to wait for a block that another process reads, which may be stopped."""
_PART = ".part"

_log = structlog.get_logger(__name__)


class Source(Protocol):
    """Reads verified bytes from the store."""

    def __call__(
        self, version: Version, table: LeafTable, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield the bytes ``[start, end)``, leaf by leaf."""
        ...


class BlockUnavailableError(Exception):
    """A block did not come to be; ``cause`` says why, if the store was at fault."""

    def __init__(self, cause: VisionO3Error | None) -> None:
        super().__init__(cause)
        self.cause = cause


class Block(LocalFile):
    """A block's file, which may still grow. Used on one event loop."""

    def __init__(self, start: int) -> None:
        super().__init__(-1, start)
        self._ready = start
        self._error: BlockUnavailableError | None = None
        self._grown = asyncio.Event()
        self.fresh = False
        """Whether nobody has asked for it since it was begun for this reader."""

    def has(self, end: int) -> bool:
        """Say whether the bytes before ``end`` can be read now."""
        return end <= self._ready

    async def wait(self, end: int) -> None:
        """Return when they can.

        Raises:
            BlockUnavailableError: They never will.
        """
        while end > self._ready:
            if self._error is not None:
                raise BlockUnavailableError(self._error.cause)
            await self._grown.wait()

    @property
    def failed(self) -> bool:
        """Whether it will never be whole."""
        return self._error is not None

    def write(self, leaf: memoryview, start: int) -> None:
        """Write a leaf. Here, so that the file stays open until that is done.

        Raises:
            OSError: The disk is full or failed.
        """
        offset = start - self._start
        while leaf:
            written = os.pwrite(self._descriptor, leaf, offset)
            leaf = leaf[written:]
            offset += written

    def is_at(self, path: Path) -> bool:
        """Say whether a path is this block's file."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def begin(self, descriptor: int) -> None:
        """Take over the file's descriptor."""
        self._descriptor = descriptor

    def grow(self, end: int) -> None:
        """Say that the bytes before ``end`` are there."""
        self._ready = end
        self._tell()

    def fail(self, cause: VisionO3Error | None) -> None:
        """Say that no more will come."""
        self._error = BlockUnavailableError(cause)
        self._tell()

    def _tell(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class _Place(NamedTuple):
    cid: CID
    number: int


class HotCache:
    """Keeps blocks of artifacts in a directory. For one event loop, and its threads.

    Args:
        directory: Made if absent.
        capacity: Bytes kept at most. Processes that share the directory may together
            exceed it by ``_SCAN_EVERY`` blocks each.
        min_free: Bytes that are left free on the disk; with less, less is kept.
        watcher: Is told of hits, misses and what is evicted.

    Raises:
        StorageError: The directory cannot be made or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        capacity: int,
        min_free: int = 0,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._directory = directory
        self._watcher = watcher
        self._capacity = capacity
        self._min_free = min_free
        self._source: Source | None = None
        self._blocks: WeakValueDictionary[_Place, Block] = WeakValueDictionary()
        self._fetches: dict[_Place, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_FETCHES)
        self._running = 0
        self._closed = False
        self._used = 0
        self._until_scan = 0
        try:
            probe = directory / f"{uuid.uuid4().hex}" / f"0{_PART}"
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = _open_locked(probe)
            if descriptor is not None:
                _remove(probe, descriptor)
            probe.parent.rmdir()
        except OSError as error:
            raise StorageError(
                f"The cache's directory {directory} (VISION_O3_CACHE_DIR) cannot be "
                f"used: files are written and locked there ({error.strerror}).",
            ) from error

    def read_by(self, source: Source) -> None:
        """Say what reads from the store. Once, before the first use."""
        self._source = source

    def takes(self, size: int) -> bool:
        """Say whether artifacts of ``size`` bytes are kept: not if they fill it."""
        return size <= self._capacity // 2

    @staticmethod
    def end_of_block(position: int) -> int:
        """Return where the block that holds a byte ends, unless its artifact does."""
        return (position // BLOCK + 1) * BLOCK

    def open(
        self, version: Version, table: LeafTable, start: int, end: int
    ) -> list[Block | None]:
        """Return the block that holds ``start``, and those after it that are begun.

        ``None`` stands for a block that cannot be had now: read past the cache. Hold
        the list while the first is read, and what follows is ready then.
        """
        first = start // BLOCK
        last = min(first + _AHEAD, (end - 1) // BLOCK)
        blocks = [
            self._block(version, table, number, ahead=number > first)
            for number in range(first, last + 1)
        ]
        self._note(blocks[0])
        return blocks

    def drop(self, version: Version, position: int, block: Block) -> None:
        """Forget a block, the one that holds a byte, as it is damaged.

        Nothing is done if another reader has dropped it, and there is a new one.
        """
        place = _Place(version.cid, position // BLOCK)
        if self._blocks.get(place) is not block:
            return
        self._watcher.tell(Event.CACHE_DAMAGED)
        _log.warning("cache.damaged", cid=str(place.cid), block=place.number)
        del self._blocks[place]
        path = self._path(place)
        if block.is_at(path):
            with suppress(OSError):  # a disk that fails: read past it
                path.unlink()

    async def close(self) -> None:
        """Stop reading from the store."""
        self._closed = True
        fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def _note(self, wanted: Block | None) -> None:
        """Tell how a block that is wanted now was found; one begun was told then."""
        if wanted is None:
            self._watcher.tell(Event.CACHE_PASSED)
        elif wanted.fresh:
            wanted.fresh = False
        else:
            self._watcher.tell(Event.CACHE_HIT)

    # ---------------------------------------------------------------------- blocks

    def _path(self, place: _Place) -> Path:
        return self._directory / str(place.cid) / str(place.number)

    def _block(
        self, version: Version, table: LeafTable, number: int, *, ahead: bool
    ) -> Block | None:
        place = _Place(version.cid, number)
        block = self._blocks.get(place)
        if block is not None and not block.failed:
            return block
        start = number * BLOCK
        end = min(start + BLOCK, table.size)
        block = self._find(place, start, end)
        if block is None:
            if self._closed or len(self._fetches) >= (_FETCHES if ahead else _QUEUE):
                return None
            block = Block(start)
            block.fresh = True
            self._watcher.tell(Event.CACHE_MISS)
            fetch = asyncio.create_task(
                self._fetch(place, ref(block), version, table, end)
            )
            self._fetches[place] = fetch
            fetch.add_done_callback(partial(self._ended, place))
        self._blocks[place] = block
        return block

    def _ended(self, place: _Place, fetch: asyncio.Task[None]) -> None:
        if self._fetches.get(place) is fetch:
            del self._fetches[place]

    def _find(self, place: _Place, start: int, end: int) -> Block | None:
        """Return a block that is on the disk, and counts as used now."""
        path = self._path(place)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return None
        block = Block(start)
        block.begin(descriptor)
        if os.fstat(descriptor).st_size != end - start:  # as after a loss of power
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(descriptor)
        block.grow(end)
        return block

    async def _fetch(
        self,
        place: _Place,
        wanted: ref[Block],
        version: Version,
        table: LeafTable,
        end: int,
    ) -> None:
        """Read a block from the store, into a file and to all who wait for it."""
        cause: VisionO3Error | None = None
        try:
            async with self._slots:
                block = wanted()
                if block is None:  # all who waited have left
                    return
                self._running += 1
                try:
                    await self._fill(place, block, version, table, end)
                finally:
                    self._running -= 1
        except VisionO3Error as error:
            cause = error.with_traceback(None)
        except OSError as error:
            _log.warning("cache.unwritable", reason=error.strerror)
        finally:
            block = wanted()
            if block is not None and not block.has(end):
                block.fail(cause)

    async def _fill(
        self, place: _Place, block: Block, version: Version, table: LeafTable, end: int
    ) -> None:
        loop = asyncio.get_running_loop()
        path = self._path(place)
        start = place.number * BLOCK
        await self._make_room(end - start)
        part = path.with_suffix(_PART)
        descriptor = await self._lock(path, part)
        if descriptor is None:  # another process has read it meanwhile
            block.begin(os.open(path, os.O_RDWR | os.O_NOFOLLOW))
            block.grow(end)
            return
        block.begin(descriptor)
        whole = False
        try:
            os.ftruncate(descriptor, 0)
            if self._source is None:
                raise RuntimeError("read_by was not called")
            leaves = self._source(version, table, start, end)
            async with aclosing(leaves):
                at = start
                async for leaf in leaves:
                    await loop.run_in_executor(None, block.write, leaf, at)
                    at += len(leaf)
                    block.grow(at)
            with suppress(FileNotFoundError):  # if not kept, read all the same
                part.rename(path)
            whole = True
            self._watcher.tell(Event.CACHE_WRITTEN_BYTES, end - start)
        finally:
            if not whole:
                part.unlink(missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    async def _lock(self, path: Path, part: Path) -> int | None:
        """Return a locked file to write to, or ``None`` if the block is there now."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while True:
            descriptor = _open_locked(part)
            if _exists(path):
                if descriptor is not None:
                    _remove(part, descriptor)
                return None
            if descriptor is not None:
                return descriptor
            if loop.time() > until:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds the block")
            await asyncio.sleep(_POLL_S)

    # ------------------------------------------------------------------------ room

    async def _make_room(self, size: int) -> None:
        """Remove blocks until another one fits.

        Raises:
            OSError: The disk is too full.
        """
        self._directory.mkdir(parents=True, exist_ok=True)  # it may be thrown away
        in_work = self._running * BLOCK
        free = shutil.disk_usage(self._directory).free - in_work
        self._until_scan -= 1
        if (
            self._until_scan < 0
            or self._used + size > self._capacity
            or free < self._min_free
        ):
            self._until_scan = _SCAN_EVERY
            missing = max(0, self._min_free - free)
            found, left = await asyncio.get_running_loop().run_in_executor(
                None, self._evict, self._capacity - in_work, missing
            )
            self._watcher.tell(Event.CACHE_EVICTED_BYTES, found - left)
            self._used = left + in_work - size
            if found - left < missing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._used += size

    def _evict(self, most: int, least: int) -> tuple[int, int]:
        """Remove what was not used for longest.

        Until at most ``most`` bytes are left and at least ``least`` removed, or none
        is left.

        Returns:
            The bytes found, and the bytes left.
        """
        found: list[tuple[float, int, str]] = []
        for folder in os.scandir(self._directory):
            with suppress(OSError):  # others' folders, lost+found; gone meanwhile
                if folder.is_dir(follow_symlinks=False):
                    found += _blocks_in(folder.path)
        found.sort(reverse=True)
        total = left = sum(size for _, size, _ in found)
        # If any has to go, some more: so that this is not done for every block.
        goal = total if total <= most else max(0, most - self._capacity // 16)
        while found and (left > goal or total - left < least):
            _, size, path = found.pop()
            if _is_removed(path):
                left -= size
        return total, left


def forget_content(directory: Path, cid: CID) -> int:
    """Remove all blocks of a content from a cache's directory; return their bytes.

    Safe in any process and thread, beside caches that use the directory: who reads a
    block reads on, and one that is just being written is given no name.
    """
    folder, removed = directory / str(cid), 0
    try:
        found = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for file in found:
        with suppress(OSError):  # gone meanwhile
            size = file.stat(follow_symlinks=False).st_size
            os.unlink(file.path)  # noqa: PTH108 - as found, no link followed
            removed += size
    with suppress(OSError):  # a block came meanwhile: the next look finds it
        folder.rmdir()
    return removed


def _blocks_in(folder: str) -> Iterator[tuple[float, int, str]]:
    """Yield when each block of a folder was used, its size and path."""
    for file in os.scandir(folder):
        with suppress(OSError):
            if file.name.endswith(_PART):
                _remove_unlocked(file.path)
            else:
                status = file.stat(follow_symlinks=False)
                yield status.st_mtime, status.st_size, file.path


def _is_removed(path: str) -> bool:
    try:
        os.unlink(path)  # noqa: PTH108 - of many files, the fast way
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))  # noqa: PTH106, PTH120 - as above
    return True


def _exists(path: Path) -> bool:
    return path.exists()


def _open_locked(part: Path) -> int | None:
    """Return a descriptor of the file, made if absent; ``None`` if another has it."""
    while True:
        part.parent.mkdir(exist_ok=True)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # the folder was removed as empty
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed, or taken for a leftover, before it was ours


def _remove(part: Path, descriptor: int) -> None:
    """Close a locked file, and remove it unless it was given the block's name."""
    with suppress(FileNotFoundError):
        if os.path.samestat(part.stat(), os.fstat(descriptor)):
            part.unlink()
    os.close(descriptor)


def _remove_unlocked(path: str) -> None:
    """Remove what a killed process left half-written."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108 - of many files, the fast way
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
