"""Strict gzip files: whole, nothing but members, each as long as it says (RFC 1952)."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from isal import isal_zlib

from vision_o3.formats.archives import check_ratio
from vision_o3.formats.inflate import RAW_DEFLATE, inflated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.formats.archives import Source
    from vision_o3.formats.limits import Limits

LONGEST_HEADER = 1 << 17
"""Bytes of a member's header: an extra field may have 64 KiB, names have no bound."""

_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # a slip of the stub
_FIXED = 10
_TRAILER = struct.Struct("<2I")
_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 1 << 1, 1 << 2, 1 << 3, 1 << 4
_RESERVED = 0b111 << 5
_DEFLATE = 8
_LEAST, _MOST = 1 << 14, 1 << 19
"""Packed bytes inflated at once: few at first, as what follows a member is copied."""
_FREE_MEMBERS = 1024
_LEAST_MEMBER = 256
"""Bytes of a member in the mean, when there are many: bgzip's have some 20,000."""


def unpack_gzip(source: Source, limits: Limits) -> Iterator[bytes]:
    """Yield what a gzip file holds, in pieces of at most 1 MiB.

    Members that follow each other are read as one. Each is checked against its CRC-32
    and length as its end is reached.

    Raises:
        ValueError: Damaged, cut short, or with bytes after the last member.
        LimitExceededError: It unpacks to too many bytes.
    """
    at = unpacked = members = 0
    while at < source.size or not members:
        members += 1
        if members > _FREE_MEMBERS + at // _LEAST_MEMBER:
            raise ValueError("it is of too many, too small gzip members")
        at += header_length(source, at)
        unpacker = isal_zlib.decompressobj(RAW_DEFLATE)
        crc, begin, ahead = 0, unpacked, _LEAST
        while not unpacker.eof:
            packed = source.read_most(at, ahead)
            if not packed:
                raise ValueError("its gzip stream is cut short")
            for piece in inflated(unpacker, packed, _DAMAGED):
                unpacked += len(piece)
                check_ratio("", source.size, unpacked, limits)
                crc = isal_zlib.crc32(piece, crc)
                yield piece
            at += len(packed)
            ahead = min(2 * ahead, _MOST)
        at -= len(unpacker.unused_data)
        told = _TRAILER.unpack(source.read(at, _TRAILER.size))
        if told != (crc, (unpacked - begin) & 0xFFFFFFFF):
            raise ValueError("its gzip stream has not the CRC or length that it tells")
        at += _TRAILER.size


def header_length(source: Source, at: int) -> int:
    """Return the length of the member header at an offset (2.3).

    Raises:
        ValueError: There is none.
    """
    head = source.read_most(at, 4096)
    if not head.startswith(b"\x1f\x8b"):
        raise ValueError(
            "it has bytes after its gzip stream"
            if at
            else "a tar.gz begins as gzip does"
        )
    if len(head) < _FIXED or head[2] != _DEFLATE or head[3] & _RESERVED:
        raise ValueError("its gzip header is damaged")
    flags = head[3]
    end = _FIXED
    if flags & (_EXTRA | _NAME | _COMMENT):
        head = source.read_most(at, LONGEST_HEADER)
        end = _texts_end(head, flags)
    if flags & _HEADER_CRC:
        told = int.from_bytes(head[end : end + 2], "little")
        if told != zlib.crc32(head[:end]) & 0xFFFF:
            raise ValueError("its gzip header is damaged")
        end += 2
    if end > len(head):
        raise ValueError("its gzip header is cut short")
    return end


def _texts_end(head: bytes, flags: int) -> int:
    end = _FIXED
    if flags & _EXTRA:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = head.find(b"\0", end) + 1
            if not end:
                raise ValueError("its gzip header is cut short or too long")
    return end
