from __future__ import annotations

import io
import random
import threading
import zlib

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vision_o3.formats.archives import Source
from vision_o3.formats.inflate import PIECE, ResumedInflate, SeekPoint
from vision_o3.formats.member_index import PackedPoint
from vision_o3.formats.seek_points import MOST_POINTS, SeekPoints, find_points

LEAST_SPACING = (1 << 15) + 1


def points_of(packed: bytes, spacing: int = LEAST_SPACING) -> SeekPoints:
    source = Source(io.BytesIO(packed), len(packed))
    return find_points(source, threading.Event(), spacing)


def opened(point: PackedPoint) -> SeekPoint:
    window = zlib.decompress(point.window) if point.window else b""
    return SeekPoint(point.unpacked_at, point.packed_at, point.bits, window)


def resumed(point: SeekPoint, packed: bytes, step: int = 1 << 20) -> bytes:
    inflate = ResumedInflate(point)
    content = []
    for at in range(point.start, len(packed), step):
        for piece in inflate.feed(packed[at : at + step]):
            assert len(piece) <= PIECE
            content.append(piece)
    return b"".join(content)


def gzipped(content: bytes, level: int, flush: int, cuts: int) -> bytes:
    packer = zlib.compressobj(level, wbits=31)
    step = len(content) // (cuts + 1) + 1
    packed = b""
    for at in range(0, len(content), step):
        packed += packer.compress(content[at : at + step]) + packer.flush(flush)
    return packed + packer.flush()


FLUSHES = [zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK]
MEMBERS = st.tuples(
    st.integers(0, 2**32),  # seed
    st.sampled_from([0, 1, 1000, 40_000, 110_000]),
    st.sampled_from([1, 2, 16, 200, 256]),  # different bytes
    st.integers(0, 9),
    st.sampled_from(FLUSHES),
    st.integers(0, 20),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=3), st.sampled_from([999, 70_000]))
@example([(1, 300_000, 200, 9, zlib.Z_BLOCK, 20)], 1 << 20)
@example([(1, 300_000, 256, 0, zlib.Z_NO_FLUSH, 0)], 70_000)
@example([(1, 100_000, 2, 6, zlib.Z_SYNC_FLUSH, 9), (1, 0, 2, 6, 0, 0)] * 2, 70_000)
def test_resuming_at_any_point_gives_exactly_the_rest(
    members: list[tuple[int, int, int, int, int, int]], step: int
) -> None:
    assume(any(member[1] for member in members))  # of nothing there are no points
    content = packed = b""
    for seed, size, different, level, flush, cuts in members:
        table = bytes(value % different for value in range(256))
        part = random.Random(seed).randbytes(size).translate(table)
        content += part
        packed += gzipped(part, level, flush, cuts)
    found = points_of(packed)
    assert found.unpacked == len(content)
    assert found.points[0].unpacked_at == 0
    for point in found.points:
        assert resumed(opened(point), packed, step) == content[point.unpacked_at :]


def test_points_lie_within_bytes_in_all_ways() -> None:
    randomness = random.Random(1)
    content = b"".join(
        bytes(randomness.choices(range(randomness.randrange(2, 256)), k=40_000))
        for _ in range(150)
    )
    packed = gzipped(content, 6, zlib.Z_NO_FLUSH, 0)
    points = points_of(packed).points
    assert {point.bits for point in points} == set(range(8))
    for point in points:
        rest = content[point.unpacked_at :]
        assert resumed(opened(point), packed) == rest


def test_points_are_at_most_a_thousand() -> None:
    content = bytes(4_000_000)
    packed = b"".join(
        gzipped(content[at : at + 1000], 0, zlib.Z_NO_FLUSH, 0)
        for at in range(0, len(content), 1000)
    )
    # Members are points even if they are closer than was asked for.
    points = points_of(packed, LEAST_SPACING).points
    assert len(points) <= len(content) // LEAST_SPACING + 1
    assert len(points) <= MOST_POINTS + 1


def test_output_is_bounded_whatever_the_ratio() -> None:
    packed = gzipped(bytes(50 << 20), 9, zlib.Z_NO_FLUSH, 0)
    inflate = ResumedInflate(SeekPoint(0, 10, 0, b""))
    pieces = inflate.feed(packed[10:])
    assert len(next(pieces)) <= PIECE


@pytest.mark.parametrize("at", [0, 40, -9])
def test_damaged_bytes_are_refused(at: int) -> None:
    content = random.Random(1).randbytes(999)
    packed = gzipped(content, 1, zlib.Z_NO_FLUSH, 0) * 2
    member = len(packed) // 2
    damaged = bytearray(packed)
    damaged[member + at if at >= 0 else at] ^= 0xFF
    with pytest.raises(ValueError, match="damaged"):
        resumed(SeekPoint(0, 10, 0, b""), bytes(damaged))


def test_a_trailer_in_two_parts_is_skipped() -> None:
    packed = gzipped(b"abc", 1, zlib.Z_NO_FLUSH, 0)
    assert resumed(SeekPoint(0, 10, 0, b""), packed * 2, 1) == b"abcabc"


def test_finding_stops_when_it_is_told_to() -> None:
    packed = gzipped(bytes(1 << 20), 0, zlib.Z_NO_FLUSH, 0)
    stop = threading.Event()
    stop.set()
    with pytest.raises(ValueError, match="damaged"):
        find_points(Source(io.BytesIO(packed), len(packed)), stop)


@pytest.mark.parametrize("damage", [b"PK", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20])
def test_damaged_file_has_no_points(damage: bytes) -> None:
    packed = gzipped(random.Random(1).randbytes(1 << 16), 1, zlib.Z_NO_FLUSH, 0)
    with pytest.raises(ValueError, match="damaged"):
        points_of(damage + packed)
