"""What ZIP and tar.gz archives share: safe paths, bounds, and reads at an offset."""

from __future__ import annotations

import os
import threading
import unicodedata
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from vision_o3.content.manifest import parse_path
from vision_o3.errors import InvalidPathError, UnsafeContentError
from vision_o3.formats.bounded import over_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vision_o3.formats.limits import Limits

ZIP_MEMBER = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"
_RATIO_FREE = 16 << 20
"""Unpacked bytes that are never too many for what holds them."""
_MACOS_ICON = "Icon\r"
"""An empty file, whose resources hold the picture of a folder."""


class Source:
    """Reads a file at offsets, from any thread, without moving where others read.

    A file without a descriptor, such as ``io.BytesIO``, is read under a lock.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        with suppress(OSError):
            self._descriptor = file.fileno()

    def read(self, at: int, count: int) -> bytes:
        """Return ``count`` bytes from an offset on.

        Raises:
            ValueError: The file ends before.
        """
        content = self.read_most(at, count)
        if len(content) != count:
            raise ValueError("it is cut short")
        return content

    def read_most(self, at: int, count: int) -> bytes:
        """Return up to ``count`` bytes from an offset on, fewer only at the end."""
        count = min(count, self.size - at)
        if count <= 0 or at < 0:
            return b""
        if self._descriptor is None:
            with self._lock:
                self._file.seek(at)
                return self._file.read(count)
        content = os.pread(self._descriptor, count, at)
        while len(content) < count:  # a read of more than 2 GiB, or a signal
            more = os.pread(self._descriptor, count - len(content), at + len(content))
            if not more:
                break
            content += more
        return content


def check_ratio(what: str, packed: int, unpacked: int, limits: Limits) -> None:
    """Return if so many bytes may come out of so few.

    Args:
        what: A file's path, or nothing for the archive as a whole.
        packed: Bytes in the archive.
        unpacked: Bytes that come out.
        limits: What may.

    Raises:
        LimitExceededError: They are too many, or too many for what holds them.
    """
    if unpacked > limits.unpacked_bytes:
        raise over_limit(
            f"{_named(what)} unpacks to too many bytes",
            limits.unpacked_bytes,
            "VISION_O3_MAX_UNPACKED_BYTES",
        )
    if unpacked > _RATIO_FREE and unpacked > limits.unpack_ratio * packed:
        raise over_limit(
            f"{_named(what)} unpacks to too many bytes for each of its own",
            limits.unpack_ratio,
            "VISION_O3_MAX_UNPACK_RATIO",
        )


def _named(path: str) -> str:
    return f"The file {path[:100]!r}" if path else "The archive"


def check_count(count: int, limits: Limits) -> None:
    """Return if an archive may have so many files and folders.

    Raises:
        LimitExceededError: It has too many.
    """
    if count > limits.archive_files:
        raise over_limit(
            "The archive has too many files",
            limits.archive_files,
            "VISION_O3_MAX_ARCHIVE_FILES",
        )


def check_path(path: str) -> None:
    """Return if a path is safe to extract.

    Raises:
        UnsafeContentError: It is not; the message says what to do.
    """
    try:
        parse_path(path)
    except InvalidPathError as error:
        raise UnsafeContentError(f"{error.message} {_remedy(path)}") from error


def _remedy(path: str) -> str:
    if path.rpartition("/")[2] == _MACOS_ICON:
        return (
            "macOS keeps a folder's icon there: leave it out (zip -x $'*Icon\\r', "
            "tar --exclude=$'Icon\\r')."
        )
    if "\\" in path:
        return (
            "Make the archive anew with a program that writes / between folders: "
            "Compress-Archive of PowerShell 6 or later, 7-Zip, or zip."
        )
    return "Archive files under plain relative paths."


class Paths:
    """The paths of one archive: each safe to extract, none twice.

    Those that differ in how letters are composed alone (NFC) are one: some disks do
    not tell them apart. A folder may be told more than once; ``finish`` says whether a
    file is one too.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._others: list[tuple[str, bool]] = []

    def add(self, path: str, *, is_folder: bool) -> None:
        """Take the next path, that of a folder without the slash at its end.

        Raises:
            UnsafeContentError: It is not safe to extract, or a file has it already.
            LimitExceededError: It is too long or too deep, or one too many.
        """
        limits = self._limits
        check_path(path)
        if not path.isascii() or len(path) > limits.path_bytes:
            self._check_length(path)
        if path.count("/") >= limits.path_depth:
            raise over_limit(
                f"The path {path[:60]!r} is too deep",
                limits.path_depth,
                "VISION_O3_MAX_PATH_DEPTH",
            )
        if not path.isascii():
            path = unicodedata.normalize("NFC", path)
        if path in self._files and not is_folder:
            raise _twice(path)
        (self._folders if is_folder else self._files).add(path)
        check_count(len(self._files) + len(self._folders), limits)

    def also(self, path: str, readings: Iterable[str], *, is_folder: bool) -> None:
        """Take what some programs read instead of a path that was added.

        Raises:
            LimitExceededError: It is too long.
        """
        found = set()
        for reading in readings:
            if len(reading) > self._limits.path_bytes:
                self._check_length(reading)
            found.add(unicodedata.normalize("NFC", reading))
        found.discard(unicodedata.normalize("NFC", path))
        self._others.extend((reading, is_folder) for reading in found)

    def finish(self) -> None:
        """Return if no file is also a folder, and no other reading is a path.

        Raises:
            UnsafeContentError: One is.
        """
        for reading, is_folder in self._others:
            if is_folder:
                self._folders.add(reading)
            elif reading in self._files:
                raise _twice(reading)
            else:
                self._files.add(reading)
        for path in self._folders & self._files:
            raise _two_things(path)
        seen = ""
        for path in chain(self._files, self._folders):
            folder, _, _ = path.rpartition("/")
            if folder == seen:
                continue
            seen = folder
            while folder:
                if folder in self._files:
                    raise _two_things(folder)
                folder, _, _ = folder.rpartition("/")

    def _check_length(self, path: str) -> None:
        if len(path.encode()) > self._limits.path_bytes:
            raise over_limit(
                f"The path {path[:60]!r}… is too long, in bytes",
                self._limits.path_bytes,
                "VISION_O3_MAX_PATH_BYTES",
            )


def _twice(path: str) -> UnsafeContentError:
    more = "" if path.isascii() else " for some programs or disks"
    return UnsafeContentError(
        f"The path {path[:200]!r} is in the archive twice{more}, and programs differ "
        "in which of the two they take. Archive each file once."
    )


def _two_things(path: str) -> UnsafeContentError:
    return UnsafeContentError(
        f"The path {path[:200]!r} is both a file and a folder of the archive, which "
        "cannot be extracted. Give one of them another name."
    )
