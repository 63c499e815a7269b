"""Where each file of an archive lies: the bytes of an index, made at publishing.

All numbers are little-endian::

    "VO3INDEX" · version u8 = 1 · container u8 (0 zip, 1 tar.gz)
    size of the archive u64 · files u32 · points u32
    a record for each file, in the order of the manifest:
        zip      offset of the packed bytes u64, packed u64, unpacked u64, method u8
        tar.gz   offset in the tar u64, size u64
    a record for each seek point, in order (tar.gz only; the first at offset 0):
        unpacked offset u64, packed offset u64, bits u8, bytes of its window u32
    the windows, one after the other, each compressed by zlib

Decoding checks the lengths and the seek points; ``member`` and ``point_before`` what
they answer. Nothing is copied: decoding takes the same time for any number of files.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

from vision_o3.formats.inflate import LONGEST_WINDOW, SeekPoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Container = Literal["zip", "tar.gz"]
MOST_POINTS = 1 << 16

STORED, DEFLATED = 0, 8
_MAGIC = b"VO3INDEX"
_VERSION = 1
_CONTAINERS: tuple[Container, ...] = ("zip", "tar.gz")
_HEAD = struct.Struct("<8s2BQ2I")
_IN_ZIP = struct.Struct("<3QB")
_IN_TAR = struct.Struct("<2Q")
_POINT = struct.Struct("<2QBI")
_LONGEST_PACKED_WINDOW = LONGEST_WINDOW + 64
_LAST_OFFSET = 2**63 - 1
_BYTE = 8


class MemberPlace(NamedTuple):
    """Where one file lies.

    Attributes:
        at: Offset of its packed bytes in a zip, of its bytes in an unpacked tar.
        packed: Bytes there.
        size: Bytes of the file.
        method: ``STORED`` or ``DEFLATED``.
    """

    at: int
    packed: int
    size: int
    method: int


class PackedPoint(NamedTuple):
    """A ``SeekPoint`` whose window is compressed by zlib, or empty."""

    unpacked_at: int
    packed_at: int
    bits: int
    window: bytes


def encode_index(
    container: Container,
    archive_size: int,
    places: Sequence[MemberPlace],
    points: Sequence[PackedPoint] = (),
) -> Iterator[bytes]:
    """Yield the bytes of an index, piece by piece.

    Args:
        container: What the archive is.
        archive_size: Its bytes.
        places: Of the files, in the order of the manifest.
        points: In order, the first at offset 0; none for a zip.
    """
    number = _CONTAINERS.index(container)
    yield _HEAD.pack(_MAGIC, _VERSION, number, archive_size, len(places), len(points))
    if container == "zip":
        for place in places:
            yield _IN_ZIP.pack(place.at, place.packed, place.size, place.method)
    else:
        for place in places:
            yield _IN_TAR.pack(place.at, place.size)
    for point in points:
        yield _POINT.pack(
            point.unpacked_at, point.packed_at, point.bits, len(point.window)
        )
    for point in points:
        yield point.window


class MemberIndex:
    """An index that was checked; get one by ``decode``.

    Attributes:
        container: What the archive is.
        archive_size: Its bytes.
        count: Files in it.
    """

    __slots__ = (
        "_content",
        "_points",
        "_points_at",
        "_windows_at",
        "archive_size",
        "container",
        "count",
    )

    def __init__(self, content: bytes) -> None:
        if len(content) < _HEAD.size:
            raise ValueError("the index is cut short")
        magic, version, number, archive_size, count, points = _HEAD.unpack_from(content)
        if magic != _MAGIC or version != _VERSION or number >= len(_CONTAINERS):
            raise ValueError("it is no index of a version known here")
        self.container: Container = _CONTAINERS[number]
        self.archive_size: int = archive_size
        self.count: int = count
        self._content = content
        record = _IN_ZIP if self.container == "zip" else _IN_TAR
        self._points_at: int = _HEAD.size + count * record.size
        windows_at = self._points_at + points * _POINT.size
        if points > MOST_POINTS or windows_at > len(content):
            raise ValueError("the index has other lengths than it tells")
        lengths = []
        self._points: list[int] = []
        before = (-1, 0)
        for point in range(points):
            unpacked_at, packed_at, bits, length = self._point(point)
            if (
                not before[0] < unpacked_at <= _LAST_OFFSET
                or not before[1] <= packed_at <= archive_size
                or bits >= _BYTE
                or bits > packed_at
                or length > _LONGEST_PACKED_WINDOW
            ):
                raise ValueError("the index has impossible seek points")
            before = (unpacked_at, packed_at)
            self._points.append(unpacked_at)
            lengths.append(length)
        self._windows_at = list(accumulate(lengths, initial=windows_at))
        if self._windows_at[-1] != len(content):
            raise ValueError("the index has other lengths than it tells")
        self._check_kind()

    @classmethod
    def decode(cls, content: bytes) -> MemberIndex:
        """Return the index that these bytes are.

        Raises:
            ValueError: They are none.
        """
        return cls(content)

    def member(self, number: int) -> MemberPlace:
        """Return where a file lies, by its place in the manifest.

        Raises:
            ValueError: There is no such file, or it lies where none can.
        """
        if not 0 <= number < self.count:
            raise ValueError("the index has no such file")
        if self.container == "zip":
            place = MemberPlace(
                *_IN_ZIP.unpack_from(self._content, _HEAD.size + number * _IN_ZIP.size)
            )
            end = self.archive_size
        else:
            at, size = _IN_TAR.unpack_from(
                self._content, _HEAD.size + number * _IN_TAR.size
            )
            place = MemberPlace(at, size, size, STORED)
            end = _LAST_OFFSET
        if (
            place.at + place.packed > end
            or place.size > _LAST_OFFSET
            or place.method not in (STORED, DEFLATED)
            or (place.method == STORED and place.packed != place.size)
        ):
            raise ValueError("the index tells an impossible place of a file")
        return place

    def point_before(self, offset: int) -> SeekPoint:
        """Return the last seek point at or before an offset in the unpacked tar.

        Raises:
            ValueError: There is none, or its window is damaged.
        """
        number = bisect_right(self._points, offset) - 1
        if number < 0:
            raise ValueError("the index has no such point")
        unpacked_at, packed_at, bits, _ = self._point(number)
        packed = self._content[self._windows_at[number] : self._windows_at[number + 1]]
        return SeekPoint(unpacked_at, packed_at, bits, _unpack_window(packed))

    def packed_end(self, offset: int) -> int:
        """Return the end of the packed bytes that all before an offset comes from.

        That is where the next seek point begins, or the archive ends.
        """
        number = bisect_right(self._points, offset - 1)
        if number == len(self._points):
            return self.archive_size
        return self._point(number)[1]

    def _point(self, number: int) -> tuple[int, int, int, int]:
        point: tuple[int, int, int, int] = _POINT.unpack_from(
            self._content, self._points_at + number * _POINT.size
        )
        return point

    def _check_kind(self) -> None:
        is_tar = self.container == "tar.gz"
        if (is_tar and self._points[:1] != [0]) or (not is_tar and self._points):
            raise ValueError("the index has not the seek points that it needs")


def _unpack_window(packed: bytes) -> bytes:
    if not packed:
        return b""
    unpacker = zlib.decompressobj()
    try:
        window = unpacker.decompress(packed, LONGEST_WINDOW + 1)
    except zlib.error:
        window = b""
    if not unpacker.eof or unpacker.unused_data or len(window) > LONGEST_WINDOW:
        raise ValueError("the window of a seek point is damaged")
    return window
