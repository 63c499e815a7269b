"""New files for an operator: whole and on disk, or not there at all."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vision_o3.errors import (
    AlreadyExistsError,
    InputError,
    StorageError,
    StorageFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTIAL = ".partial"
"""Added to the file's name until all of it is on disk."""

_MISTAKES = {
    errno.EACCES,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file for its owner alone, which gets its name when the block ends.

    Raises:
        AlreadyExistsError: The file is there, or its ``.partial``.
        InputError: It cannot be made where it is to be.
        StorageFullError, StorageError: It cannot be written.
    """
    partial = Path(f"{path}{PARTIAL}")
    with disk_errors(path):
        if os.path.lexists(path):
            raise _taken(path)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{partial} is there: this file is being written by another command, "
                "or by one that was broken off. Remove it if none is at work.",
            ) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _give_name(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)


def _give_name(partial: Path, path: Path) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if os.path.lexists(path):
            raise _taken(path) from error
        partial.rename(path)  # where there are no hard links, as on FAT


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{path} is there already, and is not replaced. Name a new file."
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a file into ours.

    Raises:
        InputError: There is no such file, or it cannot be opened.
        StorageFullError, StorageError: The disk is full, or failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            raise StorageFullError(
                f"There is no room for {path} ({reason}). Free some and try again.",
            ) from error
        if error.errno in _MISTAKES:
            raise InputError(
                f"{path} cannot be opened: {reason}. Check its name, and that you "
                "may read or write there.",
            ) from error
        raise StorageError(f"The disk failed on {path}: {reason}.") from error
