"""Inflate in bounded pieces; go on in the middle of a gzip file. Standard library only.

A seek point (Mark Adler's ``zran``) is where a deflate block begins: an offset, which
may lie within a byte, and the 32 KiB that came out before. Python's zlib cannot begin
within a byte (``inflatePrime``), so the byte is filled up from its start with the bits
of empty blocks, which give nothing, change no window, and end where the block begins.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 20
"""Most bytes that are handed on at once."""
LONGEST_WINDOW = 1 << 15
"""How far back deflate can refer (RFC 1951, 2)."""

RAW_DEFLATE = -15
"""What zlib calls a deflate stream without a header, of the largest window."""

_GZIP = 31
_TRAILER = 8
"""Bytes of CRC-32 and length after a gzip member (RFC 1952, 2.3)."""
_SLICE = 1 << 16
"""Packed bytes looked at once: what a member leaves of them is copied."""
_BYTE = 8


@dataclass(frozen=True, slots=True)
class SeekPoint:
    """Where inflating can begin.

    Attributes:
        unpacked_at: Offset in what comes out.
        packed_at: Offset of the first whole byte of the block.
        bits: How many bits of the byte before it belong to the block, the highest ones.
        window: What came out before: 32 KiB, or less at the start of a gzip member.
    """

    unpacked_at: int
    packed_at: int
    bits: int
    window: bytes

    @property
    def start(self) -> int:
        """Offset of the first byte that is needed."""
        return self.packed_at - bool(self.bits)


class ResumedInflate:
    """Inflates from a seek point to the end of the file, over gzip members.

    The member in which it begins cannot be checked against its CRC-32; those after it
    are.
    """

    def __init__(self, point: SeekPoint) -> None:
        self._bits = point.bits
        self._unpacker: zlib._Decompress | None = (
            zlib.decompressobj(RAW_DEFLATE, zdict=point.window)
            if point.window
            else zlib.decompressobj(RAW_DEFLATE)
        )
        self._begins_raw = True
        self._trailer = 0

    def feed(self, packed: bytes | memoryview) -> Iterator[bytes]:
        """Yield what comes out of the next packed bytes, in pieces of at most 1 MiB.

        The first bytes are those from the point's ``start`` on. Exhaust each iterator
        before the next call.

        Raises:
            ValueError: The bytes are damaged.
        """
        if self._bits and packed:
            packed = _filled_up(packed[0], self._bits) + bytes(packed[1:])
            self._bits = 0
        for at in range(0, len(packed), _SLICE):
            yield from self._feed(packed[at : at + _SLICE])

    def _feed(self, packed: bytes | memoryview) -> Iterator[bytes]:
        while packed:
            if self._trailer:
                skipped = min(self._trailer, len(packed))
                self._trailer -= skipped
                packed = packed[skipped:]
                continue
            if self._unpacker is None:
                self._unpacker = zlib.decompressobj(_GZIP)
            yield from inflated(self._unpacker, packed)
            if not self._unpacker.eof:
                return
            packed = self._unpacker.unused_data
            self._unpacker = None
            self._trailer = _TRAILER if self._begins_raw else 0
            self._begins_raw = False


class Unpacker(Protocol):
    """What ``decompressobj`` of zlib and of its relatives returns."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unconsumed_tail(self) -> bytes:
        """Packed bytes not looked at, for want of room."""

    @property
    def unused_data(self) -> bytes:
        """Bytes after the end of the stream."""

    def decompress(self, packed: bytes | memoryview, max_length: int, /) -> bytes:
        """Return the next bytes, at most as many as told."""


def inflated(
    unpacker: Unpacker,
    packed: bytes | memoryview,
    damaged: type[Exception] = zlib.error,
) -> Iterator[bytes]:
    """Yield all that a deflate stream gives for its next packed bytes, in pieces.

    Args:
        unpacker: As ``zlib.decompressobj`` returns it, or a relative.
        packed: The bytes.
        damaged: What the unpacker raises for a damaged stream.

    Raises:
        ValueError: The stream is damaged.
    """
    while not unpacker.eof:
        try:
            content = unpacker.decompress(packed, PIECE)
        except damaged as error:
            raise ValueError("its compressed bytes are damaged") from error
        if content:
            yield content
        packed = unpacker.unconsumed_tail
        if len(content) < PIECE:
            return


def _filled_up(byte: int, bits: int) -> bytes:
    """Return empty blocks that end where the highest ``bits`` of a byte begin."""
    used = _BYTE - bits
    filler, length = _FILLERS[used]
    last = filler >> (length - used)
    return (filler & (1 << length - used) - 1).to_bytes(length // _BYTE, "little") + (
        bytes([last | byte >> used << used])
    )


def _fillers() -> dict[int, tuple[int, int]]:
    """Return, for each number of bits modulo 8, empty blocks of so many bits.

    As numbers whose lowest bit is the first (RFC 1951, 3.1.1), with their length.
    """
    # 3.2.6: not the last block, fixed codes, the end of the block.
    fixed = (0b0000000_01_0, 10)
    # 3.2.7: not the last block, dynamic codes; one code for lengths and literals beyond
    # the literals, one for distances, 19 code lengths (in their order those of 18, 0
    # and 1 are not zero); 138 and 118 zeros, then the length 1 for the end of the
    # block, 0 for distances; the end of the block. Codes are told highest bit first.
    dynamic = 0
    length = 0
    for value, width in (
        *((0, 1), (2, 2), (0, 5), (0, 5), (19 - 4, 4)),
        *((0, 3), (0, 3), (1, 3), (2, 3), *((0, 3),) * 13, (2, 3), (0, 3)),
        *((0b0, 1), (138 - 11, 7), (0b0, 1), (118 - 11, 7)),
        *((0b11, 2), (0b01, 2)),
        (0, 1),
    ):
        dynamic |= value << length
        length += width
    found = {}
    for odd in (0, 1):
        for count in range(4):
            filler, filled = (dynamic, length) if odd else (0, 0)
            for _ in range(count):
                filler |= fixed[0] << filled
                filled += fixed[1]
            found[filled % _BYTE] = (filler, filled)
    return found


_FILLERS = _fillers()
