"""Files that several runs, and several processes, may fill: none is begun twice.

A partial file has its name from its CID. Nothing else is kept of a transfer: what is
on the disk is checked against the verified sidecar when it goes on, so neither a
``kill -9`` nor a loss of power can make a wrong leaf count. A lock keeps a second
process from fetching the same bytes, no more: whoever writes, writes verified leaves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Optional

from vision_o3.sdk.cache import PartialFile, storage_errors

if TYPE_CHECKING:
    from pathlib import Path

    from vision_o3.content.cid import CID
    from vision_o3.sdk.bounds import Bounds
    from vision_o3.sdk.cache import Cache

    Watch = Callable[[int], None]

IDLE_AFTER_S = 60.0
"""A process that wrote nothing for so long is not waited for."""
_LOOK_EVERY_S = 0.1
_NO_MORE_DATA = errno.ENXIO
_BLOCK = 512
"""Bytes in a unit of ``st_blocks``, by POSIX."""


@contextmanager
def resume(
    cache: Cache, cid: CID, size: int, bounds: Bounds, watch: Optional[Watch] = None
) -> Iterator[Optional[PartialFile]]:
    """Yield the partial file of a CID, or ``None`` if another process completed it.

    While another process fills it, it is waited for. The file stays where it is if the
    block fails.

    Args:
        cache: Where it lies.
        cid: What is fetched.
        size: Its length in bytes.
        bounds: Of the call.
        watch: Called with the bytes that another process has fetched so far.

    Raises:
        StorageFullError: The disk cannot hold it.
        CacheError: The cache cannot be written.
        CancelledError, DeadlineExceededError: The call ended.
    """
    path = cache.partial_path(cid)
    with storage_errors(cache.directory):
        descriptor = _open(path)
    ours = False
    try:
        with storage_errors(cache.directory):
            ours = _lock(path, descriptor, bounds, watch)
            if ours:
                held = _held(descriptor)
                cache.make_room(max(0, size - held))
                if os.fstat(descriptor).st_size > size:
                    os.ftruncate(descriptor, size)
        if not ours:
            yield None
            return
        with storage_errors(cache.directory):
            yield PartialFile(descriptor, path)
    finally:
        state = os.fstat(descriptor)
        if ours and state.st_size == 0 and _is_at(path, state):  # nothing came
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):  # not of ours: links, pipes
            path.unlink()
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def _lock(path: Path, descriptor: int, bounds: Bounds, watch: Optional[Watch]) -> bool:
    """Lock the file; return whether it is still the one at the path."""
    idle_s, last = 0.0, None
    while not _try_lock(descriptor):
        state = os.fstat(descriptor)
        if not state.st_nlink or not _is_at(path, state):
            return False
        seen = state.st_mtime_ns, state.st_blocks
        idle_s = idle_s + _LOOK_EVERY_S if seen == last else 0.0
        last = seen
        if idle_s >= IDLE_AFTER_S:  # stopped, perhaps: the lock is not needed
            break
        if watch is not None:
            watch(state.st_blocks * _BLOCK)
        bounds.sleep(_LOOK_EVERY_S)
    return _is_at(path, os.fstat(descriptor))


def _try_lock(descriptor: int) -> bool:
    """Lock a file unless another process has; the end of the process unlocks it."""
    try:
        import fcntl  # noqa: PLC0415 - not every system has it
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: it is not needed
        return True
    return True


def _is_at(path: Path, state: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), state)
    return False


def _held(descriptor: int) -> int:
    """Return the bytes of the disk that a file takes."""
    return os.fstat(descriptor).st_blocks * _BLOCK


def extents(descriptor: int, size: int) -> Iterator[range]:
    """Yield where a file has been written, as byte ranges; all of it if unknown."""
    end = min(size, os.fstat(descriptor).st_size)
    at = 0
    while at < end:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != _NO_MORE_DATA:
                yield range(at, end)
            return
        yield range(start, min(at, end))
