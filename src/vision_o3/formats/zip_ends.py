"""The end of a ZIP archive, which tells where its directory lies: in one way alone."""

from __future__ import annotations

import struct
from typing import NamedTuple

from vision_o3.formats.archives import ZIP_END, ZIP_MEMBER, Source

# 4.3.16: signature, disks (2), entries (here, in all), directory's size and offset,
# length of the comment. 4.3.14 and 4.3.15 likewise.
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END_64_SIGNATURE, _LOCATOR_SIGNATURE = b"PK\x06\x06", b"PK\x06\x07"
_END_64_REST = _END_64.size - 12
"""What a zip64 end record says of its own size: all after that field."""
_LONGEST_COMMENT = _16 = 0xFFFF
_32 = 0xFFFFFFFF
"""A value that is told in a zip64 record instead, as is ``_16``."""


class Directory(NamedTuple):
    """Where the directory lies, and how many entries it has."""

    start: int
    size: int
    entries: int


def find_directory(source: Source) -> Directory:
    """Return where the directory lies, from the record that ends the file.

    Raises:
        ValueError: It is not to be found, or in more than one way.
    """
    if source.read_most(0, 4) not in (ZIP_MEMBER, ZIP_END):
        try:
            _find_end(source)
        except ValueError:
            raise ValueError("a ZIP archive begins with PK") from None
        raise with_prefix()
    end, record = _find_end(source)
    told: tuple[int, ...] = _END.unpack(record)[1:-1]
    locator_at = end - _LOCATOR.size
    if locator_at >= 0:
        locator = source.read(locator_at, _LOCATOR.size)
        if locator.startswith(_LOCATOR_SIGNATURE):
            end, told = _read_zip64(source, locator, locator_at, told)
    disk, first_disk, here, entries, length, start = told
    if disk or first_disk or here != entries:
        raise ValueError("it is one part of several")
    if start + length != end:
        raise ValueError(
            "its directory does not lie before its end, as if bytes were added or lost"
        )
    return Directory(start, length, entries)


def _find_end(source: Source) -> tuple[int, bytes]:
    """Return where the record that ends the file is, and the record (4.3.16).

    Programs look for it from the end, and differ in what they make of one whose
    comment does not reach the end: so the last signature must be the record's.
    """
    tail_at = max(0, source.size - _END.size - _LONGEST_COMMENT)
    tail = source.read(tail_at, source.size - tail_at)
    at = tail.rfind(ZIP_END)
    if at < 0 or _end_of(tail, at) != len(tail):
        raise ValueError(
            "its end record is not at the end, as if the file were cut short or bytes "
            "were added"
        )
    comment = tail[at + _END.size :]
    if _END_64_SIGNATURE in comment or _LOCATOR_SIGNATURE in comment:
        raise ValueError("its comment could be taken for another archive's end")
    other = tail.rfind(ZIP_END, 0, at)
    while other >= 0:
        if _end_of(tail, other) == len(tail):
            raise ValueError("it has two end records")
        other = tail.rfind(ZIP_END, 0, other)
    return tail_at + at, tail[at : at + _END.size]


def _end_of(tail: bytes, at: int) -> int:
    """Return where the comment of an end record ends that begins there."""
    comment = int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")
    return at + _END.size + comment


def _read_zip64(
    source: Source, locator: bytes, locator_at: int, told: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """Return where the zip64 end record lies and what it tells.

    It must say what the record at the end says, where that can say it. ``torch.save``
    writes one into archives of any size.
    """
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1:
        raise ValueError("it is one part of several")
    if at + _END_64.size != locator_at:
        raise ValueError("its zip64 end record is not where it should be")
    signature, rest, _, _, *wide = _END_64.unpack(source.read(at, _END_64.size))
    if signature != _END_64_SIGNATURE or rest != _END_64_REST:
        raise ValueError("its zip64 end record is missing or damaged")
    for narrow, value, most in zip(told, wide, (_16,) * 4 + (_32,) * 2, strict=True):
        if narrow not in (value, most):
            raise ValueError("its two end records differ")
    return at, tuple(wide)


def with_prefix() -> ValueError:
    """Return the error for an archive that does not begin with its first file."""
    return ValueError(
        "it has bytes before its first file, as archives that are programs have"
    )
