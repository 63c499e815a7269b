"""The headers of ZIP and tar.gz archives. Nothing but names is read from them."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

ZIP_MEMBER = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"

# APPNOTE 4.3.12 to 4.3.16: signature and the fields of use, in order.
_END = struct.Struct("<4s8xIIH")  # directory size and offset, comment length
_END_64 = struct.Struct("<4s36xQQ")  # directory size and offset
_LOCATOR = struct.Struct("<4s4xQ4x")  # offset of the zip64 end record
_ENTRY = struct.Struct("<4s24xHHH12x")  # lengths of name, extra field, comment
_LONGEST_COMMENT = 65_535

_BLOCK = 512
"""Bytes of a tar header."""
_CHECKSUM = slice(148, 156)
_GZIP = 16 + zlib.MAX_WBITS
_MOST_GZIP = 1 << 18
"""Compressed bytes read for one tar header: gzip's own may hold 64 KiB of text."""


def zip_names(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the names in a ZIP archive's directory, whose place is checked first.

    Memory is O(name); ask for as many as you need.

    Raises:
        ValueError: Not a whole ZIP archive.
    """
    file.seek(0)
    if file.read(4) not in (ZIP_MEMBER, ZIP_END):
        raise ValueError("a ZIP archive begins with PK")
    at, end = _zip_directory(file, size)
    while at < end:
        file.seek(at)
        signature, *lengths = _unpack(_ENTRY, file)
        if signature != b"PK\x01\x02":
            raise ValueError("its directory is damaged")
        yield file.read(lengths[0])
        at += _ENTRY.size + sum(lengths)
    if at != end:
        raise ValueError("its directory is damaged")


def _zip_directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return where the directory starts and ends, from the record that ends the file.

    ``torch.save`` writes a zip64 end record into archives of any size.
    """
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(ZIP_END)
    if at < 0 or at + _END.size > len(tail):
        raise ValueError("its end record is missing, as if the file were cut short")
    _, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ValueError(
            "its end record is not at the end, as if the file were cut short"
        )
    end = tail_at + at
    if tail[max(0, at - _LOCATOR.size) : at].startswith(b"PK\x06\x07"):
        _, end = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        if end > size:
            raise ValueError("its directory lies outside the file")
        file.seek(end)
        signature, length, start = _unpack(_END_64, file)
        if signature != b"PK\x06\x06":
            raise ValueError("its zip64 end record is missing")
    if start + length > end:
        raise ValueError("its directory lies outside the file")
    return start, start + length


def check_tar_gz(file: BinaryIO) -> None:
    """Check that a gzip-compressed tar archive begins here, empty or not.

    Raises:
        ValueError: It does not.
    """
    file.seek(0)
    unpacker = zlib.decompressobj(_GZIP)
    header = b""
    try:
        while len(header) < _BLOCK and file.tell() < _MOST_GZIP:
            packed = file.read(4096)
            if not packed:
                break
            header += unpacker.decompress(packed, _BLOCK - len(header))
    except zlib.error as error:
        raise ValueError("a tar.gz begins as gzip does") from error
    if len(header) < _BLOCK or (any(header) and not _is_summed(header)):
        raise ValueError("what it holds is not a tar archive")


def _is_summed(header: bytes) -> bool:
    """Say whether a tar header has its checksum: the sum with itself as spaces."""
    told = header[_CHECKSUM]
    try:
        return int(told.strip(b"\0 "), 8) == sum(header) - sum(told) + sum(b" " * 8)
    except ValueError:
        return False


def _unpack(record: struct.Struct, file: BinaryIO) -> tuple[Any, ...]:
    content = file.read(record.size)
    if len(content) != record.size:
        raise ValueError("it is cut short")
    return record.unpack(content)
