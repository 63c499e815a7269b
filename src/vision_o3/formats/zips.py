"""Strict ZIP archives: what programs could read in two ways is refused.

Follows PKWARE's APPNOTE 6.3.10. The directory at the end and the headers before each
member must say the same, and together with the packed bytes account for every byte of
the file: nothing before, between or after can hide another archive, and members cannot
share their bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from isal import isal_zlib

from vision_o3.errors import UnsafeContentError
from vision_o3.formats.archives import (
    ZIP_MEMBER,
    Paths,
    Source,
    check_count,
    check_path,
    check_ratio,
)
from vision_o3.formats.inflate import PIECE, RAW_DEFLATE, inflated
from vision_o3.formats.zip_ends import Directory, find_directory, with_prefix
from vision_o3.formats.zip_names import masked, read_extra, read_name
from vision_o3.formats.zip_streams import EndSearch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.formats.limits import Limits

STORED, DEFLATED = 0, 8
"""Methods (4.4.5) that are read."""

# 4.3.12 and 4.3.7.
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_LENGTHS, _LENGTHS_AT = struct.Struct("<3H"), 28
"""Of an entry: lengths of name, extra fields, comment."""

_16, _32 = 0xFFFF, 0xFFFFFFFF
"""A value that is told in a zip64 field instead."""
_LAST_OFFSET = 2**63 - 1

_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_DESCRIBED_LATER = 1 << 3
_PATCH = 1 << 5
_HINTS = 3 << 1
"""Bits of the flags that say how hard was compressed, and nothing to a reader."""

_UNIX_HOSTS = (3, 19)
"""Who made an entry (4.4.2): Unix and macOS keep a file type of their own."""
_DOS_VOLUME, _DOS_FOLDER = 0x08, 0x10
"""Bits of the attributes that programs of other systems keep (4.4.15)."""
_FILE_TYPE = 0o170000
_REGULAR = 0o100000
_FOLDER = 0o040000

_HEADER_AHEAD = 128
"""Bytes read beyond the name of a header: most extra fields are shorter."""
_EMPTY_DEFLATED = 2
_THIS = "./"
_OWN_FOLDER = "."


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file or folder of a ZIP archive.

    Attributes:
        path: Safe to extract; a folder's has no slash at its end.
        method: ``STORED`` or ``DEFLATED``.
        packed: Bytes in the archive.
        unpacked: Bytes of the file.
        crc: CRC-32 of the file.
        data_at: Offset of the packed bytes.
        is_folder: It is a folder, which holds nothing itself.
        streamed: It is stored, and its size told after it: see ``zip_streams``.
    """

    path: str
    method: int
    packed: int
    unpacked: int
    crc: int
    data_at: int
    is_folder: bool
    streamed: bool = False


class _Entry(NamedTuple):
    """One entry of the directory."""

    raw: bytes
    path: str
    others: tuple[str, ...]
    renamed: bool
    flags: int
    method: int
    crc: int
    packed: int
    unpacked: int
    header_at: int
    is_folder: bool

    @property
    def streamed(self) -> bool:
        """Whether a file is stored, and its size told after it."""
        return self.method == STORED and bool(self.flags & _DESCRIBED_LATER)


def read_directory(
    file: BinaryIO, size: int, limits: Limits, *, renaming: bool = False
) -> list[ZipMember]:
    """Return the members of a ZIP archive, in the order of its directory.

    Reads the directory and the header of each member, not the members: ``unpack``
    checks those. Memory is O(members), whose number is bounded before any is read.
    The archive's own folder (``./``) is left out, and such a start of paths.

    Args:
        file: The archive.
        size: Its bytes.
        limits: What it may have.
        renaming: Names that are not UTF-8 may be replaced by a Unicode path field
            (4.6.9). Not for files whose programs do without, as PyTorch does.

    Raises:
        ValueError: Not a whole ZIP archive, or one that can be read in two ways.
        UnsafeContentError: A path could lead outside of where it is extracted, or
            there twice; or a link or a device.
        LimitExceededError: It exceeds one of the limits.
    """
    source = Source(file, size)
    directory = find_directory(source)
    check_count(directory.entries, limits)
    if directory.entries * _ENTRY.size > directory.size:
        raise ValueError("its directory is too small for its entries")
    paths = Paths(limits)
    entries = []
    for entry in _entries(source, directory, renaming=renaming):
        if not (entry.is_folder and entry.path == _OWN_FOLDER):
            paths.add(entry.path, is_folder=entry.is_folder)
            if entry.others or entry.renamed:
                _add_readings(paths, entry)
        check_ratio(entry.path, entry.packed, entry.unpacked, limits)
        entries.append(entry)
    paths.finish()
    check_ratio("", size, sum(entry.unpacked for entry in entries), limits)
    starts = _check_headers(source, entries, directory.start)
    return [
        ZipMember(
            entry.path,
            entry.method,
            entry.packed,
            entry.unpacked,
            entry.crc,
            start,
            entry.is_folder,
            entry.streamed,
        )
        for entry, start in zip(entries, starts, strict=True)
        if not (entry.is_folder and entry.path == _OWN_FOLDER)
    ]


def _add_readings(paths: Paths, entry: _Entry) -> None:
    """Take what programs of other rules make of the name."""
    paths.also(entry.path, entry.others, is_folder=entry.is_folder)
    if entry.renamed:
        check_path(_shown(masked(entry.raw)))


def unpack(file: BinaryIO, member: ZipMember, limits: Limits) -> Iterator[bytes]:
    """Yield the bytes of a member, in pieces of at most 1 MiB. Safe in any thread.

    Raises:
        ValueError: They are not as many as told, or have another CRC-32; those that
            were yielded are not to be used.
        LimitExceededError: They are too many, or too many for the packed ones.
    """
    check_ratio(member.path, member.packed, member.unpacked, limits)
    source = Source(file, member.data_at + member.packed)
    pieces = _stored(source, member)
    if member.method == DEFLATED:
        pieces = _inflate(pieces)
    left, crc = member.unpacked, 0
    search = EndSearch() if member.streamed else None
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        crc = isal_zlib.crc32(piece, crc)
        if search is not None:
            search.feed(piece)
        yield piece
    if left or crc != member.crc:
        raise damaged(member)
    if search is not None:
        search.finish()


def check_streamed(member: ZipMember, content: bytes | memoryview) -> None:
    """Return if no reader of a stream sees a file end early. ``unpack`` does it too.

    Args:
        member: Any; most need no look.
        content: All its bytes.

    Raises:
        ValueError: One could.
    """
    if member.streamed:
        search = EndSearch()
        search.feed(content)
        search.finish()


def damaged(member: ZipMember) -> ValueError:
    """Return the error for a member whose bytes are not as told."""
    return ValueError(
        f"the file {member.path[:100]!r} has not the length or the CRC that the "
        "directory tells"
    )


def _stored(source: Source, member: ZipMember) -> Iterator[bytes]:
    end = member.data_at + member.packed
    for at in range(member.data_at, end, PIECE):
        yield source.read(at, min(PIECE, end - at))


def _inflate(packed: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(RAW_DEFLATE)
    for piece in packed:
        if unpacker.eof:
            break
        yield from inflated(unpacker, piece)
    else:
        if unpacker.eof and not unpacker.unused_data:
            return
    raise ValueError("the compressed bytes of a file do not end where they should")


def _entries(
    source: Source, directory: Directory, *, renaming: bool
) -> Iterator[_Entry]:
    """Yield the entries of the directory, which must fill it."""
    at, end = directory.start, directory.start + directory.size
    window, window_at = b"", at
    for _ in range(directory.entries):
        length = _entry_length(window, at - window_at)
        if at - window_at + length > len(window):
            # The longest entry has 46 bytes and three times 64 KiB: it fits.
            window, window_at = source.read(at, min(PIECE, end - at)), at
            length = _entry_length(window, 0)
            if length > len(window):
                raise ValueError("its directory is damaged")
        record = window[at - window_at : at - window_at + length]
        yield _parse_entry(record, renaming=renaming)
        at += length
    if at != end:
        raise ValueError("its directory has more than its entries")


def _entry_length(window: bytes, begin: int) -> int:
    """Return how long the entry is that begins there, at least what is fixed."""
    if begin + _ENTRY.size > len(window):
        return _ENTRY.size
    name, extra, comment = _LENGTHS.unpack_from(window, begin + _LENGTHS_AT)
    return _ENTRY.size + int(name) + int(extra) + int(comment)


def _parse_entry(record: bytes, *, renaming: bool) -> _Entry:
    (
        signature, made_by, _, flags, method, _, _, crc, packed, unpacked,
        name_length, extra_length, _, disk, _, attributes, header_at,
    ) = _ENTRY.unpack_from(record)  # fmt: skip
    if signature != b"PK\x01\x02":
        raise ValueError("its directory is damaged")
    raw = record[_ENTRY.size : _ENTRY.size + name_length]
    extra = record[_ENTRY.size + name_length :][:extra_length]
    wide, unicode_path = read_extra(extra) if extra else (b"", None)
    name = read_name(raw, flags, unicode_path, renaming=renaming)
    path = name.path
    if wide or _32 in (unpacked, packed, header_at) or disk == _16:
        unpacked, packed, header_at, disk = _widen(
            wide, ((unpacked, _32), (packed, _32), (header_at, _32), (disk, _16))
        )
    if disk:
        raise ValueError("it is one part of several")
    if header_at > _LAST_OFFSET or packed > _LAST_OFFSET or unpacked > _LAST_OFFSET:
        raise ValueError("its directory tells impossible sizes")
    is_folder = path.endswith("/")
    _check_kind(path, attributes >> 16, is_folder=is_folder)
    if made_by >> 8 not in _UNIX_HOSTS:
        _check_dos_kind(path, attributes, is_folder=is_folder)
    entry = _Entry(
        raw,
        _shown(path),
        tuple(map(_shown, name.others)) if name.others else (),
        name.renamed,
        flags,
        method,
        crc,
        packed,
        unpacked,
        header_at,
        is_folder,
    )
    _check_entry(entry)
    return entry


def _check_kind(path: str, mode: int, *, is_folder: bool) -> None:
    """Check the file type that Unix programs keep in the external attributes."""
    kind = mode & _FILE_TYPE
    if kind and kind != _REGULAR and not (is_folder and kind == _FOLDER):
        raise UnsafeContentError(
            f"{path[:200]!r} in the archive is a link, a device or the like, and no "
            "file. Archive the files that links point to."
        )


def _check_dos_kind(path: str, attributes: int, *, is_folder: bool) -> None:
    """Check the attributes of DOS: some programs make a folder of what is so marked."""
    if attributes & _DOS_VOLUME or (attributes & _DOS_FOLDER and not is_folder):
        raise UnsafeContentError(
            f"{path[:200]!r} in the archive is marked as a folder or as a disk's name, "
            "but called like a file. Make the archive anew with another program."
        )


def _shown(name: str) -> str:
    """Return the path of a name, without the slash at the end of a folder's."""
    if name[:1] != ".":
        return name.removesuffix("/")
    while name.startswith(_THIS):
        name = name[len(_THIS) :]
        if not name:
            return _OWN_FOLDER
    return name.removesuffix("/")


def _check_entry(entry: _Entry) -> None:
    shown = entry.path[:100]
    if entry.flags & _ENCRYPTED:
        raise ValueError(f"the file {shown!r} is encrypted")
    if entry.flags & _PATCH:
        raise ValueError(f"the file {shown!r} is a patch of another")
    if entry.method not in (STORED, DEFLATED):
        raise ValueError(
            f"the file {shown!r} is compressed by method {entry.method}; only 0 "
            "(stored) and 8 (deflated) are read everywhere"
        )
    if entry.method == STORED and entry.packed != entry.unpacked:
        raise ValueError(f"the file {shown!r} is stored, but told to have two sizes")
    if entry.is_folder and (
        entry.unpacked or entry.crc or entry.packed > _EMPTY_DEFLATED
    ):
        raise ValueError(f"the folder {shown!r} has content of its own")


def _widen(wide: bytes, told: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Return values, those at their most replaced from a zip64 field (4.5.3).

    The field holds just these; some programs write the sizes at any rate, which then
    must be the same.
    """
    formats = "QQQI"[: len(told)]
    needed = "".join(
        form for form, (value, most) in zip(formats, told, strict=True) if value == most
    )
    if len(wide) == struct.calcsize(f"<{needed}"):
        given = iter(struct.unpack(f"<{needed}", wide))
        return tuple(next(given) if value == most else value for value, most in told)
    for count in range(2, len(told) + 1):
        if len(wide) == struct.calcsize(f"<{formats[:count]}"):
            all_given = struct.unpack(f"<{formats[:count]}", wide)
            break
    else:
        raise ValueError("a zip64 field is missing, or has not what it should")
    for (value, most), other in zip(told, all_given, strict=False):
        if value not in (other, most):
            raise ValueError("a zip64 field contradicts what it widens")
    rest = told[len(all_given) :]
    if any(value == most for value, most in rest):
        raise ValueError("a zip64 field is missing, or has not what it should")
    return (*all_given, *(value for value, _ in rest))


def _check_headers(source: Source, entries: list[_Entry], end: int) -> list[int]:
    """Return where each entry's packed bytes start.

    Every byte before the directory, at ``end``, must belong to one member.
    """
    starts = [0] * len(entries)
    order = sorted(range(len(entries)), key=lambda number: entries[number].header_at)
    at = 0
    for position, number in enumerate(order):
        entry = entries[number]
        if entry.header_at != at:
            if not position:
                raise with_prefix()
            raise ValueError("there are bytes that belong to no file, or to two")
        starts[number] = _check_header(source, entry)
        at = starts[number] + entry.packed
        if entry.flags & _DESCRIBED_LATER:
            is_last = position + 1 == len(order)
            following = end if is_last else entries[order[position + 1]].header_at
            at += _check_descriptor(source, entry, at, following - at)
    if at != end:
        raise ValueError("there are bytes that belong to no file, or to two")
    return starts


def _check_header(source: Source, entry: _Entry) -> int:
    """Return where the packed bytes start after a header that agrees (4.3.7)."""
    at, name_length = entry.header_at, len(entry.raw)
    ahead = source.read_most(at, _LOCAL.size + name_length + _HEADER_AHEAD)
    if len(ahead) < _LOCAL.size:
        raise ValueError("it is cut short")
    (
        signature, _, flags, method, _, _, crc, packed, unpacked, length, extra_length,
    ) = _LOCAL.unpack_from(ahead)  # fmt: skip
    extra_at = _LOCAL.size + length
    if (
        signature != ZIP_MEMBER
        or (flags ^ entry.flags) & ~_HINTS
        or method != entry.method
        or ahead[_LOCAL.size : extra_at] != entry.raw
    ):
        raise _disagreeing(entry)
    start: int = at + extra_at + extra_length
    if extra_length or _32 in (packed, unpacked):
        extra = ahead[extra_at : extra_at + extra_length]
        if len(extra) < extra_length:
            extra = source.read(at + extra_at, extra_length)
        wide, unicode_path = read_extra(extra)
        _check_name(entry, unicode_path)
        if wide or not flags & _DESCRIBED_LATER:
            unpacked, packed = _widen(wide, ((unpacked, _32), (packed, _32)))
    else:
        _check_name(entry, None)
    given = (crc, packed, unpacked)
    told = (entry.crc, entry.packed, entry.unpacked)
    if flags & _DESCRIBED_LATER:
        if any(
            one not in (0, _32, other) for one, other in zip(given, told, strict=True)
        ):
            raise _disagreeing(entry)
    elif given != told:
        raise _disagreeing(entry)
    return start


def _check_name(entry: _Entry, unicode_path: bytes | None) -> None:
    """Check that the header before a member gives the name of the directory."""
    if unicode_path is not None or entry.renamed:
        renaming = entry.renamed
        name = read_name(entry.raw, entry.flags, unicode_path, renaming=renaming)
        if _shown(name.path) != entry.path:
            raise _disagreeing(entry)


def _disagreeing(entry: _Entry) -> ValueError:
    return ValueError(
        f"the header of {entry.path[:100]!r} is missing, or contradicts the directory"
    )


def _check_descriptor(source: Source, entry: _Entry, at: int, room: int) -> int:
    """Return the size of the descriptor after packed bytes (4.3.9).

    It may have a signature and, with zip64, wider sizes: its room tells.
    """
    told = struct.pack("<I2I", entry.crc, entry.packed & _32, entry.unpacked & _32)
    wide = struct.pack("<I2Q", entry.crc, entry.packed, entry.unpacked)
    for descriptor in (told, b"PK\x07\x08" + told, wide, b"PK\x07\x08" + wide):
        if len(descriptor) == room and source.read(at, room) == descriptor:
            return room
    raise _disagreeing(entry)
