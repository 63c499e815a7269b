from __future__ import annotations

import random
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.archive_files import deflate
from vision_o3.formats.inflate import SeekPoint
from vision_o3.formats.member_index import (
    DEFLATED,
    STORED,
    MemberIndex,
    MemberPlace,
    PackedPoint,
    encode_index,
)
from vision_o3.formats.members import read_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOW = bytes(range(256)) * 128
PLACES = [MemberPlace(40, 7, 7, STORED), MemberPlace(90, 5, 900, DEFLATED)]
IN_TAR = [MemberPlace(512, 7, 7, STORED), MemberPlace(9 << 20, 5, 5, STORED)]
POINTS = [
    PackedPoint(0, 10, 0, b""),
    PackedPoint(4 << 20, 500, 3, zlib.compress(WINDOW)),
    PackedPoint(9 << 20, 900, 0, zlib.compress(WINDOW[:99])),
]


def encoded(
    container: str = "tar.gz",
    size: int = 1000,
    places: list[MemberPlace] = IN_TAR,
    points: list[PackedPoint] = POINTS,
) -> bytes:
    return b"".join(encode_index(container, size, places, points))  # type: ignore[arg-type]  # one of the two


def test_index_of_a_zip_tells_what_was_put_in() -> None:
    index = MemberIndex.decode(encoded("zip", 1000, PLACES, []))
    assert (index.container, index.archive_size, index.count) == ("zip", 1000, 2)
    assert [index.member(number) for number in range(2)] == PLACES


def test_index_of_a_tar_gz_tells_what_was_put_in() -> None:
    index = MemberIndex.decode(encoded())
    assert (index.container, index.archive_size, index.count) == ("tar.gz", 1000, 2)
    assert [index.member(number) for number in range(2)] == IN_TAR
    for offset, number in (
        (0, 0), ((4 << 20) - 1, 0), (4 << 20, 1), ((9 << 20) - 1, 1), (1 << 40, 2),
    ):  # fmt: skip
        packed = POINTS[number]
        window = zlib.decompress(packed.window) if packed.window else b""
        point = index.point_before(offset)
        assert point == SeekPoint(*packed[:3], window)
    assert index.point_before(4 << 20).start == 499
    assert index.point_before(9 << 20).start == 900


def test_what_is_needed_ends_at_the_next_point() -> None:
    index = MemberIndex.decode(encoded())
    for offset, end in (
        (1, 500), (4 << 20, 500), ((4 << 20) + 1, 900), ((9 << 20) + 1, 1000),
    ):  # fmt: skip
        assert index.packed_end(offset) == end


@pytest.mark.parametrize(
    "content",
    [
        b"",
        encoded()[:20],
        encoded()[:-1],
        encoded() + b"x",
        b"X" + encoded()[1:],
        encoded()[:8] + b"\2" + encoded()[9:],
        encoded()[:9] + b"\2" + encoded()[10:],
        encoded("zip", 1000, PLACES, POINTS),
        encoded(points=[]),
        encoded(points=POINTS[1:]),
        encoded(points=[POINTS[0], POINTS[0]]),
        encoded(points=[POINTS[0], POINTS[2], POINTS[1]]),
        encoded(points=[POINTS[0], PackedPoint(9, 9, 0, b"")]),
        encoded(points=[POINTS[0], PackedPoint(9, 1001, 0, b"")]),
        encoded(points=[POINTS[0], PackedPoint(9, 99, 8, b"")]),
        encoded(points=[PackedPoint(0, 0, 3, b"")]),
        encoded(points=[POINTS[0], PackedPoint(2**63, 99, 0, b"")]),
        encoded(points=[POINTS[0], PackedPoint(9, 99, 0, bytes(40_000))]),
        encoded()[:18] + struct.pack("<2I", 2, 2**32 - 1) + encoded()[26:],
        encoded()[:18] + struct.pack("<2I", 2**32 - 1, 3) + encoded()[26:],
        encoded()[:18] + struct.pack("<2I", 3, 3) + encoded()[26:],
    ],
)
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="index"):
        MemberIndex.decode(content)


@pytest.mark.parametrize(
    ("container", "place"),
    [
        ("zip", MemberPlace(994, 7, 7, STORED)),
        ("zip", MemberPlace(2**64 - 1, 7, 7, STORED)),
        ("zip", MemberPlace(0, 7, 8, STORED)),
        ("zip", MemberPlace(0, 7, 8, 9)),
        ("zip", MemberPlace(0, 7, 2**63, DEFLATED)),
        ("tar.gz", MemberPlace(2**63 - 1, 1, 1, STORED)),
        ("tar.gz", MemberPlace(0, 2**64 - 1, 2**64 - 1, STORED)),
    ],
)
def test_impossible_place_is_refused(container: str, place: MemberPlace) -> None:
    points = POINTS if container == "tar.gz" else []
    index = MemberIndex.decode(encoded(container, 1000, [place], points))
    with pytest.raises(ValueError, match="impossible place"):
        index.member(0)


@pytest.mark.parametrize("number", [-1, 2, 2**40])
def test_file_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="no such file"):
        MemberIndex.decode(encoded()).member(number)


def test_offset_before_the_archive_is_refused() -> None:
    with pytest.raises(ValueError, match="no such point"):
        MemberIndex.decode(encoded()).point_before(-1)


@pytest.mark.parametrize(
    "window",
    [
        b"no zlib stream",
        zlib.compress(WINDOW)[:-1],
        zlib.compress(WINDOW) + b"x",
        zlib.compress(WINDOW + b"x"),
        zlib.compress(bytes(20 << 20)),
    ],
)
def test_damaged_window_is_refused(window: bytes) -> None:
    index = MemberIndex.decode(
        encoded(points=[POINTS[0], PackedPoint(9, 99, 0, window)])
    )
    with pytest.raises(ValueError, match="window"):
        index.point_before(9)


@given(st.data())
def test_any_bytes_are_an_index_or_refused(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([encoded(), encoded("zip", 1000, PLACES, [])]))
    content = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 90) | st.integers(0, len(content) - 1))
        content[at % len(content)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        index = MemberIndex.decode(bytes(content[:cut]))
        for number in range(min(index.count, 9)):
            index.member(number)
        for offset in (0, 4 << 20, 1 << 40):
            assert len(index.point_before(offset).window) <= 1 << 15
            assert index.packed_end(offset) <= index.archive_size
    except ValueError:
        return


# Reading

BODY = random.Random(1).randbytes(3000)
ARCHIVE = bytes(50) + BODY + deflate(BODY * 700)
IN_ZIP = [
    MemberPlace(50, 3000, 3000, STORED),
    MemberPlace(3050, len(ARCHIVE) - 3050, 3000 * 700, DEFLATED),
]
ZIP = MemberIndex.decode(encoded("zip", len(ARCHIVE), IN_ZIP, []))


def reader(
    archive: bytes, asked: list[tuple[int, int]], piece: int = 999
) -> Callable[[int, int], Iterator[memoryview]]:
    def read(start: int, end: int) -> Iterator[memoryview]:
        view = memoryview(archive)
        for at in range(start, end, piece):
            asked.append((at, min(at + piece, end)))
            yield view[at : min(at + piece, end)]

    return read


@pytest.mark.parametrize(
    ("start", "end"), [(0, 3000), (0, 1), (2999, 3000), (17, 1234), (5, 5)]
)
def test_of_a_stored_file_just_the_range_is_read(start: int, end: int) -> None:
    asked: list[tuple[int, int]] = []
    read = reader(ARCHIVE, asked)
    assert b"".join(read_member(ZIP, 0, read, start, end)) == BODY[start:end]
    assert sum(last - first for first, last in asked) == end - start


@pytest.mark.parametrize(
    ("start", "end"), [(0, 2_100_000), (0, 1), (2_099_999, 2_100_000), (5000, 9000)]
)
def test_of_a_deflated_file_all_to_the_end_of_the_range_is_read(
    start: int, end: int
) -> None:
    asked: list[tuple[int, int]] = []
    pieces = list(read_member(ZIP, 1, reader(ARCHIVE, asked), start, end))
    assert b"".join(pieces) == (BODY * 700)[start:end]
    assert max(map(len, pieces)) <= 1 << 20
    if end < 10_000:
        assert asked[-1][1] < 3050 + 12_000


def test_stored_file_comes_in_pieces() -> None:
    archive = bytes(3 << 20)
    place = MemberPlace(0, len(archive), len(archive), STORED)
    index = MemberIndex.decode(encoded("zip", len(archive), [place], []))
    pieces = list(read_member(index, 0, lambda s, e: [archive[s:e]], 0, len(archive)))
    assert [len(piece) for piece in pieces] == [1 << 20] * 3


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (0, 3001), (2, 1)])
def test_range_outside_the_file_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="outside the file"):
        list(read_member(ZIP, 0, reader(ARCHIVE, []), start, end))


@pytest.mark.parametrize("number", [0, 1])
def test_archive_that_ends_early_is_refused(number: int) -> None:
    size = IN_ZIP[number].size
    with pytest.raises(ValueError, match="holds less"):
        list(read_member(ZIP, number, reader(ARCHIVE[:3000], []), 0, size))


def test_damaged_archive_is_refused() -> None:
    damaged = ARCHIVE[:3050] + b"\xff" * 99
    with pytest.raises(ValueError, match="damaged"):
        list(read_member(ZIP, 1, reader(damaged, []), 0, 9))


def test_no_more_is_given_than_the_file_has() -> None:
    place = MemberPlace(3050, IN_ZIP[1].packed, 10, DEFLATED)
    index = MemberIndex.decode(encoded("zip", len(ARCHIVE), [place], []))
    content = b"".join(read_member(index, 0, reader(ARCHIVE, []), 0, 10))
    assert content == BODY[:10]
