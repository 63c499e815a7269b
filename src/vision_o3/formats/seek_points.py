"""Points in a gzip file from which a reader can begin, found by ``indexed_gzip``.

It inflates the whole file once more, outside of the interpreter's lock: beside another
thread that reads the file, this takes little longer than not doing it. What it answers
is its export, whose layout is told in the source of ``zran_export_index``::

    "GZIDX" · version u8 · flags u8 · compressed size u64 · uncompressed size u64
    spacing u32 · bytes of a window u32 · points u32
    each point: compressed offset u64, uncompressed offset u64, bits u8, has window u8
    the windows
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import indexed_gzip  # type: ignore[import-untyped]  # it has no stubs

from vision_o3.formats.gzips import header_length
from vision_o3.formats.inflate import LONGEST_WINDOW
from vision_o3.formats.member_index import PackedPoint

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator

    from _typeshed import ReadableBuffer

    from vision_o3.formats.archives import Source

SPACING = 4 << 20
"""Unpacked bytes between points, at least: what is read to get at one file."""
_LARGEST_SPACING = 16 << 20
"""The finder holds four times as many bytes, and 32 KiB for each point."""
MOST_POINTS = 1000
"""Points that are kept; a window of 32 KiB goes with each."""

_HEAD = struct.Struct("<5s2B2Q3I")
_POINT = struct.Struct("<2Q2B")
_BEYOND = 1 << 50
"""An offset after the end of any file."""
_READ = 1 << 20
"""Must hold the header of a gzip member: ``gzips.LONGEST_HEADER`` is less."""


class SeekPoints(NamedTuple):
    """The seek points of one gzip file.

    Attributes:
        points: In order, the first at offset 0.
        unpacked: Bytes that the whole file gives.
    """

    points: list[PackedPoint]
    unpacked: int


def find_points(source: Source, stop: threading.Event, spacing: int = 0) -> SeekPoints:
    """Return the seek points of a gzip file, at most some 1,000.

    Args:
        source: The file, which ``unpack_gzip`` checks: here it is taken to be whole.
        stop: Set it, and the work ends soon, with an error.
        spacing: Bytes between points, instead of what suits the file.

    Raises:
        ValueError: The file is damaged, or the work was stopped.
    """
    spacing = spacing or min(max(SPACING, source.size // MOST_POINTS), _LARGEST_SPACING)
    try:
        finder = indexed_gzip.IndexedGzipFile(
            fileobj=_Reader(source, stop),
            spacing=spacing,
            window_size=LONGEST_WINDOW,
            readbuf_size=_READ,
            buffer_size=io.DEFAULT_BUFFER_SIZE,
            skip_crc_check=True,
        )
        with finder:
            # Not ``build_full_index``, which keeps the interpreter's lock.
            finder.seek(_BEYOND)
            export = _Export(spacing)
            finder.export_index(fileobj=export)
    except (OSError, EOFError) as error:
        raise ValueError("its gzip stream is damaged") from error
    first = PackedPoint(0, header_length(source, 0), 0, b"")
    return SeekPoints([first, *export.points], export.unpacked)


class _Reader(io.RawIOBase):
    """A file at a place of its own, until it is told to stop."""

    mode = "rb"

    def __init__(self, source: Source, stop: threading.Event) -> None:
        super().__init__()
        self._source = source
        self._stop = stop
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}.get(whence, 0)
        self._at = start + offset
        return self._at

    def read(self, count: int = -1, /) -> bytes:
        if self._stop.is_set():
            raise EOFError
        content = self._source.read_most(self._at, count if count >= 0 else _READ)
        self._at += len(content)
        return content


class _Export(io.RawIOBase):
    """Takes an export as it is written; only the windows that are kept are held.

    Attributes:
        points: Those that were kept.
        unpacked: Bytes of the whole file.
    """

    mode = "wb"

    def __init__(self, spacing: int) -> None:
        super().__init__()
        self.points: list[PackedPoint] = []
        self.unpacked = 0
        self._spacing = spacing
        self._held = bytearray()
        self._parser = self._parse()
        self._needed = next(self._parser)

    def writable(self) -> bool:
        return True

    def write(self, content: ReadableBuffer, /) -> int:
        self._held += content
        while self._needed and len(self._held) >= self._needed:
            part = bytes(self._held[: self._needed])
            del self._held[: self._needed]
            self._needed = self._parser.send(part)
        return memoryview(content).nbytes

    def _parse(self) -> Generator[int, bytes, None]:
        """Take the parts of the export, each as long as was asked for; at last 0."""
        head = yield _HEAD.size
        _, _, _, size, self.unpacked, _, window_size, count = _HEAD.unpack(head)
        table = yield count * _POINT.size
        spacing = max(self._spacing, self.unpacked // MOST_POINTS)
        last_at = 0
        for packed_at, unpacked_at, bits, has_window in _POINT.iter_unpack(table):
            window = (yield window_size) if has_window else b""
            # A point at the end is of no use, and may have half a window.
            if unpacked_at >= last_at + spacing and packed_at + 8 < size:
                last_at = unpacked_at
                packed = zlib.compress(window) if window else b""
                self.points.append(PackedPoint(unpacked_at, packed_at, bits, packed))
        yield 0
