"""Strict tar archives, read once from start to end: ustar, GNU and PAX.

Follows POSIX.1-2024 (``pax``, "ustar Interchange Format" and "pax Extended Header") and
the GNU tar manual's "Basic Tar Format". What is no plain file or folder is refused, as
is what programs read in different ways.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_o3.errors import UnsafeContentError
from vision_o3.formats.archives import Paths, check_count
from vision_o3.formats.bounded import over_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.formats.limits import Limits

BLOCK = 512
LONGEST_EXTENSION = 1 << 20
"""Bytes of a PAX header or a GNU long name."""

_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _MAGIC, _PREFIX = slice(156, 157), slice(257, 265), slice(345, 500)
_USTAR, _GNU, _OLD = b"ustar\x0000", b"ustar  \0", bytes(8)
_NUMBERS = (
    ("mode", slice(100, 108)),
    ("owner", slice(108, 116)),
    ("group", slice(116, 124)),
    ("time", slice(136, 148)),
    ("device", slice(329, 337)),
    ("device", slice(337, 345)),
)
"""Fields that nothing is made of here, but at which some programs stop."""
_OWN, _DEVICES = slice(100, 148), slice(329, 345)
_USUAL = re.compile(rb"(?:[0-7]{7}[ \0]){3}(?:[0-7]{11}[ \0]){2}")
"""Mode, owner, group, size and time, as most programs write them."""
_NO_DEVICES = (bytes(16), b"0000000\0" * 2)
_HALF = BLOCK // 2
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_BASE_256, _BASE_256_NEGATIVE = 0x80, 0xFF
_LAST_SIZE = 2**63 - 1
_NO_SIZE = bytes(12)

_V7 = b"\0"
_FILES = {b"0", _V7, b"7"}
_FOLDER = b"5"
_PAX, _PAX_GLOBAL = b"x", b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
}
_SPARSE_FILE = b"S"
_DEREFERENCE = "Archive the files themselves (tar --dereference --hard-dereference)."
_NO_HOLES = (
    "The archive has a sparse file, which programs read in different ways. Archive "
    "without --sparse, or with bsdtar's --no-read-sparse."
)
_NOT_FILES = {
    b"V": "a volume's name: archive without --label",
    b"D": "a folder's list of files: archive without --listed-incremental (-g)",
    b"M": "the rest of a file of another volume: archive without --multi-volume (-M)",
    b"N": "a list of long names, as very old programs write it",
}
_MOST_HEADERS = 4
"""Headers of a file: its own, a PAX header, and two of GNU tar."""
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_LONGEST_LENGTH = 8
_SPARSE = (b"GNU.sparse.", b"SUN.holesdata", b"SCHILY.realsize")


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file or folder of a tar archive.

    Attributes:
        path: Safe to extract; a folder's has no slash at its end.
        size: Bytes of the file.
        data_at: Their offset in the tar.
        is_folder: It is a folder, which holds nothing itself.
    """

    path: str
    size: int
    data_at: int
    is_folder: bool


class _Extensions:
    """What extended headers say of the next member, in place of its own header."""

    __slots__ = ("kinds", "path", "size")

    def __init__(self) -> None:
        self.kinds: set[bytes] = set()
        self.path: str | None = None
        self.size: int | None = None


class TarReader:
    """Reads a tar archive from the pieces of its bytes, in one pass.

    Take ``members``; of each one that is a file, ``content`` gives the bytes, as long
    as the next member is not asked for. What is not taken is skipped.

    Attributes:
        size: Bytes of the archive that were read; at the end all of them.
    """

    def __init__(self, pieces: Iterator[bytes], limits: Limits) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._used = 0
        self.size = 0
        self._left = 0
        self._limits = limits
        self._headers = 0

    def members(self) -> Iterator[TarMember]:
        """Yield the members, in order; at the end check that nothing follows.

        Raises:
            ValueError: Not a whole tar archive, or one read in different ways.
            UnsafeContentError: A member is no file or folder, is sparse, or has a path
                that is not safe to extract or is there twice.
            LimitExceededError: It exceeds one of the limits.
        """
        paths = Paths(self._limits)
        extensions = _Extensions()
        while any(header := self._read(BLOCK)):
            self._headers += 1
            check_count(self._headers // _MOST_HEADERS, self._limits)
            _check_header(header)
            kind = header[_TYPE]
            if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                self._extend(extensions, header)
                continue
            member = self._member(header, extensions)
            extensions = _Extensions()
            if member is None:
                continue
            paths.add(member.path, is_folder=member.is_folder)
            self._left = member.size
            yield member
            for _ in self.content():
                pass
            self._skip_padding(member.size)
        if extensions.kinds:
            raise ValueError("it ends after an extended header")
        paths.finish()
        self._check_rest()

    def content(self) -> Iterator[memoryview]:
        """Yield the bytes of the member that ``members`` gave last.

        Raises:
            ValueError: The archive ends before.
        """
        while self._left:
            part = self._next(self._left)
            self._left -= len(part)
            yield part

    def _member(self, header: bytes, extensions: _Extensions) -> TarMember | None:
        """Return the member of a header, or ``None`` for the archive's own folder."""
        kind = header[_TYPE]
        path = extensions.path
        if path is None:
            path = _header_path(header)
        if kind not in _FILES and kind != _FOLDER:
            raise _no_file(kind, path)
        size = extensions.size if extensions.size is not None else _size(header)
        # V7 had no type for folders. Programs differ in which of the paths they ask.
        is_folder = kind == _FOLDER or (kind == _V7 and path.endswith("/"))
        if kind == _V7 and is_folder != _header_path(header).endswith("/"):
            raise ValueError(
                f"{path[:100]!r} is a file for some programs, a folder for others"
            )
        if is_folder and size:
            raise ValueError(f"the folder {path[:100]!r} has content of its own")
        if size > self._limits.unpacked_bytes:
            raise over_limit(
                f"The file {path[:100]!r} has too many bytes",
                self._limits.unpacked_bytes,
                "VISION_O3_MAX_UNPACKED_BYTES",
            )
        while path.startswith("./"):
            path = path[2:]
        if is_folder:
            path = path.removesuffix("/")
            if path in ("", "."):
                return None
        return TarMember(path, size, self.size, is_folder)

    def _extend(self, extensions: _Extensions, header: bytes) -> None:
        """Read an extended header, and keep what it says of the next member."""
        size = _size(header)
        if size > LONGEST_EXTENSION:
            raise ValueError("it has an extended header of more than 1 MiB")
        content = self._read(size)
        self._skip_padding(size)
        kind = header[_TYPE]
        if kind == _PAX_GLOBAL:
            if _parse_pax(content).keys() & {b"path", b"size"}:
                raise ValueError("it gives one path or size to all its files")
            return
        if kind in extensions.kinds:
            raise ValueError("a file has two extended headers of one type")
        extensions.kinds.add(kind)
        if kind == _LONG_LINK:
            return  # refused with the link
        if kind == _LONG_NAME:
            _give_path(extensions, content.removesuffix(b"\0"))
            return
        records = _parse_pax(content)
        if (path := records.get(b"path")) is not None:
            _give_path(extensions, path)
        if (told := records.get(b"size")) is not None:
            if not _DECIMAL.fullmatch(told) or int(told) > _LAST_SIZE:
                raise ValueError("a PAX header tells an impossible size")
            extensions.size = int(told)

    def _next(self, most: int) -> memoryview:
        """Return the next bytes that are there in one piece, at least one."""
        if self._used == len(self._piece):
            self._piece, self._used = memoryview(next(self._pieces, b"")), 0
            if not self._piece:
                raise ValueError("the tar archive in it is cut short")
        part = self._piece[self._used : self._used + most]
        self._used += len(part)
        self.size += len(part)
        return part

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            parts.append(self._next(count))
            count -= len(parts[-1])
        return b"".join(parts)

    def _skip_padding(self, size: int) -> None:
        """Skip what fills the last block; it may be anything."""
        left = -size % BLOCK
        while left:
            left -= len(self._next(left))

    def _check_rest(self) -> None:
        """Check that there is nothing but zeros after the end."""
        rest = bytes(self._piece[self._used :])
        while rest:
            self.size += len(rest)
            if rest.count(0) != len(rest):
                raise ValueError("it has bytes after the end of the tar archive")
            rest = next(self._pieces, b"")


def _check_header(header: bytes) -> None:
    """Check what all headers have: a checksum, with itself as spaces, and a magic."""
    told = _OCTAL.fullmatch(header[_CHECKSUM])
    # The low half of Adler-32 is one more than the sum, below 65,521: in C.
    total = sum(
        (zlib.adler32(half) & 0xFFFF) - 1 for half in (header[:_HALF], header[_HALF:])
    )
    total += 8 * ord(" ") - sum(header[_CHECKSUM])
    if told is None or int(told[1] or b"0", 8) != total:
        raise ValueError("what it holds is not a tar archive, or is damaged")
    if not _USUAL.fullmatch(header[_OWN]) or header[_DEVICES] not in _NO_DEVICES:
        _check_numbers(header)
    magic = header[_MAGIC]
    if magic not in (_USTAR, _GNU, _OLD):
        raise ValueError("a header is of a tar format not known here")
    if magic != _USTAR and any(header[_PREFIX]):
        raise ValueError(
            "a header has fields that programs read in different ways, as those of tar "
            "--listed-incremental (-g) are"
        )


def _check_numbers(header: bytes) -> None:
    """Check that fields are octal digits, or base 256 as GNU tar writes it."""
    for what, place in _NUMBERS:
        field = header[place]
        if field[0] not in (_BASE_256, _BASE_256_NEGATIVE) and not _OCTAL.fullmatch(
            field
        ):
            raise ValueError(f"the {what} in a header is no number")


def _no_file(kind: bytes, path: str) -> Exception:
    """Return the error for an entry of a type that is not read."""
    if kind == _SPARSE_FILE:
        return UnsafeContentError(_NO_HOLES)
    if kind in _REFUSED:
        return UnsafeContentError(
            f"{path[:200]!r} in the archive is {_REFUSED[kind]}, and no plain file or "
            f"folder. {_DEREFERENCE}"
        )
    if kind in _NOT_FILES:
        return ValueError(f"{path[:100]!r} in it is {_NOT_FILES[kind]}")
    return ValueError(f"it has an entry of the unknown type {kind!r}")


def _header_path(header: bytes) -> str:
    name = _field(header[_NAME])
    if header[_MAGIC] == _USTAR:
        prefix = _field(header[_PREFIX])
        if prefix:
            name = prefix + b"/" + name
    return _decode_path(name)


def _field(field: bytes) -> bytes:
    """Return a text that zeros fill up."""
    text = field.rstrip(b"\0")
    if b"\0" in text:
        raise ValueError("a path has a NUL in it")
    return text


def _give_path(extensions: _Extensions, path: bytes) -> None:
    if extensions.path is not None:
        raise ValueError("a file has two paths")
    if not path or b"\0" in path:
        raise ValueError("a path is empty or has a NUL in it")
    extensions.path = _decode_path(path)


def _decode_path(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise ValueError(
            "a path is not UTF-8: archive where names are (LANG=C.UTF-8), or rename it"
        ) from None


def _size(header: bytes) -> int:
    """Return a header's size: octal digits, or a large number as GNU tar writes it."""
    field = header[_SIZE]
    if field[0] == _BASE_256:
        size = int.from_bytes(field[1:], "big")
    else:
        digits = _OCTAL.fullmatch(field)
        if digits is None or not (digits[1] or field == _NO_SIZE):
            raise ValueError("a header tells an impossible size")
        size = int(digits[1] or b"0", 8)
    if size > _LAST_SIZE:
        raise ValueError("a header tells an impossible size")
    return size


def _parse_pax(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX header, ``<length> <keyword>=<value>`` and newline.

    Raises:
        ValueError: They are malformed, or one of use is there twice.
        UnsafeContentError: They are of a sparse file.
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + _LONGEST_LENGTH)
        digits = content[at:space] if space >= 0 else b""
        end = at + int(digits) if _DECIMAL.fullmatch(digits) else -1
        record = content[space + 1 : end - 1]
        keyword, equals, value = record.partition(b"=")
        if (
            end > len(content)
            or end <= space + 1
            or content[end - 1 : end] != b"\n"
            or not keyword
            or not equals
        ):
            raise ValueError("a PAX header is malformed")
        if keyword.startswith(_SPARSE):
            raise UnsafeContentError(_NO_HOLES)
        if keyword in records and keyword in (b"path", b"size"):
            raise ValueError("a PAX header says one thing twice")
        records[keyword] = value
        at = end
    return records
