"""The sizes of images, from the first bytes of their files. No pixel is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = 128 << 10
"""Bytes to give: a JPEG's size comes after its metadata, often of 64 KiB and more."""

# ITU T.81 table B.1: the start of a frame is C0 to CF but DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers with no length: TEM, RST0 to RST7, SOI."""
_ENDS = frozenset({0x00, 0xD9, 0xDA})
"""No marker, the end of the image, the start of a scan: no frame comes any more."""
_FILL = 0xFF
_FRAME_HEADER = 9
"""Bytes from a frame's marker to the end of its width."""
_BITMAP_CORE_HEADER = 12
_VP8_START = b"\x9d\x01\x2a"
_VP8L_START = 0x2F
_WEBP_LEAST = 30


def image_size(head: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels, or ``None`` if the head does not tell them.

    Known are JPEG, PNG, GIF, BMP and WebP, by their content.
    """
    if head.startswith(b"\xff\xd8"):
        return _jpeg(head)
    reader = _READERS.get(head[:2])
    size = reader(head) if reader is not None else None
    return size if size is not None and all(size) else None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    """Walk from marker to marker to the frame (ITU T.81, B.1 and B.2.2)."""
    at, last = 2, len(head) - _FRAME_HEADER
    while at <= last and head[at] == _FILL:
        marker = head[at + 1]
        if marker in _FRAMES:
            height = head[at + 5] << 8 | head[at + 6]
            width = head[at + 7] << 8 | head[at + 8]
            return (width, height) if width and height else None
        if marker == _FILL:
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _ENDS:
            break
        else:
            at += 2 + (head[at + 2] << 8 | head[at + 3])
    return None


def _png(head: bytes) -> tuple[int, int] | None:
    """Read IHDR, the first chunk (PNG specification 3, 11.2.1)."""
    if head[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or len(head) < 24:  # noqa: PLR2004 - to the end of the height
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _gif(head: bytes) -> tuple[int, int] | None:
    """Read the logical screen (GIF89a specification, 18)."""
    if head[:6] not in {b"GIF87a", b"GIF89a"} or len(head) < 10:  # noqa: PLR2004 - to the end of the height
        return None
    return _little(head, 6, 2), _little(head, 8, 2)


def _bmp(head: bytes) -> tuple[int, int] | None:
    """Read the bitmap's header: BITMAPCOREHEADER, or BITMAPINFOHEADER and later."""
    if len(head) < 26:  # noqa: PLR2004 - to the end of the height
        return None
    header = _little(head, 14, 4)
    if header == _BITMAP_CORE_HEADER:
        return _little(head, 18, 2), _little(head, 20, 2)
    if not 16 <= header <= 124:  # noqa: PLR2004 - OS/2's shortest, Windows' version 5
        return None
    width = int.from_bytes(head[18:22], "little", signed=True)
    # A negative height: the rows go from top to bottom.
    height = abs(int.from_bytes(head[22:26], "little", signed=True))
    return (width, height) if width > 0 else None


def _webp(head: bytes) -> tuple[int, int] | None:
    """Read the first chunk (WebP container, RFC 9649, 2.5 to 2.7)."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < _WEBP_LEAST:
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + _little(head, 24, 3), 1 + _little(head, 27, 3)
    if kind == b"VP8L" and head[20] == _VP8L_START:
        bits = _little(head, 21, 4)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == _VP8_START:
        return _little(head, 26, 2) & 0x3FFF, _little(head, 28, 2) & 0x3FFF
    return None


def _little(head: bytes, at: int, length: int) -> int:
    return int.from_bytes(head[at : at + length], "little")


_READERS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    b"\x89P": _png,
    b"GI": _gif,
    b"BM": _bmp,
    b"RI": _webp,
}
