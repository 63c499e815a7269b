"""Unsigned varints (LEB128), as multiformats and protocol buffers write them."""

from __future__ import annotations

from typing import Tuple

MAX_LENGTH = 9
"""Bytes; the multiformats specification allows no more (63 bits)."""

_MORE = 0x80
"""The bit which says that another byte follows."""


def encode(number: int) -> bytes:
    """Return the shortest encoding of a number ≥ 0."""
    out = bytearray()
    while number >= _MORE:
        out.append(number & 0xFF | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode(raw: bytes, at: int) -> Tuple[int, int]:
    """Return the number at an offset and the offset after it.

    Raises:
        ValueError: It is cut short, longer than needed, or over 63 bits.
    """
    number = shift = 0
    for end in range(at, min(at + MAX_LENGTH, len(raw))):
        byte = raw[end]
        number |= (byte & ~_MORE) << shift
        shift += 7
        if byte < _MORE:
            if byte == 0 and end > at:
                raise ValueError("a varint is longer than needed")
            return number, end + 1
    raise ValueError("a varint is cut short or too long")
