"""What is done to files below the cache directory, beside other processes.

Symbolic links there are not followed: where one is read, nothing is there; where a
directory belongs, it gives way.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import time
from pathlib import Path
from typing import List

_RECENTLY_S = 3600.0
"""Where there are no locks, a file that was written so lately is still in use."""
_BLOCK = 512
"""Bytes in a unit of ``st_blocks``, by POSIX."""


def children(directory: Path) -> List[Path]:
    """Return what is in a directory, sorted; nothing if it is a link, or not there."""
    try:
        return [] if directory.is_symlink() else sorted(directory.iterdir())
    except OSError:
        return []


def is_plain(path: Path) -> bool:
    """Whether there is a regular file, and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_file(path: Path) -> io.FileIO:
    """Open a file for reading, unless it is a link.

    Raises:
        OSError: It is one, or it cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return io.FileIO(os.open(path, flags))


def make_directory(root: Path, *names: str) -> Path:
    """Make a directory below another, step by step; return its path.

    Raises:
        OSError: It cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root
    for name in names:
        path = path / name
        if path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # another was faster
                path.unlink()
        path.mkdir(exist_ok=True)
    return path


def delete(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def delete_unused(path: Path) -> int:
    """Remove a file that no process has locked; return the bytes that are free now.

    Raises:
        BlockingIOError: A process that runs has locked it.
        OSError: It cannot be removed.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        state = os.fstat(descriptor)
        _expect_unused(descriptor, state)
        path.unlink()
    finally:
        os.close(descriptor)
    return size_on_disk(state)


def is_unused(path: Path) -> bool:
    """Whether a file is there, and no process has locked it."""
    try:
        with open_file(path) as file:
            _expect_unused(file.fileno(), os.fstat(file.fileno()))
    except OSError:
        return False
    return True


def _expect_unused(descriptor: int, state: os.stat_result) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not every system has it

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:  # or a file system without locks
        if state.st_mtime > time.time() - _RECENTLY_S:
            raise BlockingIOError from error


def size_on_disk(state: os.stat_result) -> int:
    """Return the bytes of the disk that a file takes, holes left out."""
    blocks = getattr(state, "st_blocks", None)
    return state.st_size if blocks is None else blocks * _BLOCK


def sync_directory(path: Path) -> None:
    """Make what was renamed in a directory safe from power loss."""
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a small file; others see the old one or the new one, whole.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{os.urandom(12).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
