"""Read one file out of an archive, by its index, without reading the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vision_o3.formats.inflate import PIECE, ResumedInflate, SeekPoint
from vision_o3.formats.member_index import STORED

if TYPE_CHECKING:
    from vision_o3.formats.member_index import MemberIndex

Read = Callable[[int, int], Iterable[bytes | memoryview]]
"""Gives the bytes ``[start, end)`` of an archive, reading them as they are taken."""


def read_member(
    index: MemberIndex, number: int, read: Read, start: int, end: int
) -> Iterator[bytes]:
    """Yield the bytes ``[start, end)`` of a file, in pieces of at most 1 MiB.

    While it skips what is before ``start``, pieces are empty: the caller may stop then.
    Takes from the archive what these need: of a stored member of a zip just them, of a
    deflated one all from its beginning, of a tar.gz all from the seek point before
    (some 4 MiB). The bytes are not checked but for what inflating tells: compare them
    with the file's CID.

    Args:
        index: Of the archive.
        number: The file's place in the manifest.
        read: Gives bytes of the archive.
        start: Offset in the file.
        end: At most the file's size.

    Raises:
        ValueError: The archive's bytes are damaged, or are not those of the index.
    """
    place = index.member(number)
    if not 0 <= start <= end <= place.size:
        raise ValueError("the range lies outside the file")
    if start == end:
        return
    before = 0
    if index.container == "tar.gz":
        point = index.point_before(place.at + start)
        before = place.at + start - point.unpacked_at
        pieces = _inflated(point, read(point.start, index.packed_end(place.at + end)))
    elif place.method == STORED:
        pieces = _cut(read(place.at + start, place.at + end))
    else:
        before = start
        pieces = _inflated(
            SeekPoint(0, place.at, 0, b""), read(place.at, place.at + place.packed)
        )
    left = end - start
    for piece in pieces:
        part = piece[before : before + left]
        before -= min(before, len(piece))
        left -= len(part)
        yield part
        if not left:
            return
    raise ValueError("the archive holds less of the file than its index tells")


def _inflated(
    point: SeekPoint, packed: Iterable[bytes | memoryview]
) -> Iterator[bytes]:
    unpacker = ResumedInflate(point)
    for piece in packed:
        yield from unpacker.feed(piece)


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), PIECE):
            yield bytes(piece[at : at + PIECE])
