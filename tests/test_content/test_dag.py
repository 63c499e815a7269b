from __future__ import annotations

import hashlib
import io
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.content import TINY, pieces, profiled_contents
from vision_o3.content.cid import CID, RAW
from vision_o3.content.dag import (
    ContentHasher,
    DagBuilder,
    cid_of_bytes,
    cid_of_stream,
)
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.errors import LimitExceededError


def number(value: int) -> bytes:
    low, high = value % 128, value // 128
    return bytes([low + 128]) + number(high) if high else bytes([low])


def naive(
    content: bytes, profile: ImportProfile, depth: int
) -> tuple[bytes, int, list[bytes]]:
    """Return the CID, all blocks' bytes and nodes, from the top downwards."""
    if depth == 0:
        digest = hashlib.sha256(content).digest()
        return b"\x01\x55\x12\x20" + digest, len(content), []
    span = profile.chunk_size * profile.width ** (depth - 1)
    parts = [content[at : at + span] for at in range(0, len(content), span)]
    children = [naive(part, profile, depth - 1) for part in parts]
    node = b""
    for cid, total, _ in children:
        link = b"\x0a\x24" + cid + b"\x12\x00\x18" + number(total)
        node += b"\x12" + number(len(link)) + link
    sizes = b"".join(b"\x20" + number(len(part)) for part in parts)
    unixfs = b"\x08\x02\x18" + number(len(content)) + sizes
    node += b"\x0a" + number(len(unixfs)) + unixfs
    nodes = [node] + [below for child in children for below in child[2]]
    total = len(node) + sum(child[1] for child in children)
    return b"\x01\x70\x12\x20" + hashlib.sha256(node).digest(), total, nodes


def naive_depth(size: int, profile: ImportProfile) -> int:
    depth = 0
    while profile.chunk_size * profile.width**depth < size:
        depth += 1
    return depth


@given(profiled_contents())
def test_equals_a_naive_implementation(case: tuple[ImportProfile, bytes]) -> None:
    profile, content = case
    cid, _, nodes = naive(content, profile, naive_depth(len(content), profile))
    hasher = ContentHasher(profile)
    hasher.update(content)
    dag = hasher.finish()
    assert bytes(dag.root) == cid
    assert list(dag.nodes) == nodes
    assert dag.size == len(content)
    assert (dag.sidecar() is None) == dag.root.is_raw == (not nodes)


@given(st.data())
def test_the_sizes_of_reads_do_not_matter(data: st.DataObject) -> None:
    profile, content = data.draw(profiled_contents())
    expected = cid_of_bytes(content, profile)
    hasher = ContentHasher(profile)
    for piece in data.draw(pieces(content)):
        hasher.update(piece)
    assert hasher.finish().root == expected
    assert cid_of_stream(io.BytesIO(content), profile).root == expected


@pytest.mark.parametrize("size", [1, 4096, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_the_sizes_of_reads_do_not_matter_under_the_real_profile(size: int) -> None:
    content = bytes(range(256)) * (2**12 * 2) + b"end"
    if size < 4096:
        content = content[:5000]
    hasher = ContentHasher()
    for at in range(0, len(content), size):
        hasher.update(memoryview(content)[at : at + size])
    assert hasher.finish().root == cid_of_bytes(content)


@given(profiled_contents(), st.data())
def test_any_other_content_has_another_name(
    case: tuple[ImportProfile, bytes], data: st.DataObject
) -> None:
    profile, content = case
    other = data.draw(st.binary(max_size=len(content) + 1))
    if len(other) <= profile.max_size and other != content:
        assert cid_of_bytes(other, profile) != cid_of_bytes(content, profile)


def test_the_empty_file_is_one_raw_leaf() -> None:
    for dag in (DagBuilder().finish(), ContentHasher().finish()):
        assert dag.root == CID.of_block(RAW, b"")
        assert (dag.size, dag.nodes, dag.sidecar()) == (0, (), None)


def test_finishing_again_gives_the_same() -> None:
    for size in (0, 5, 8, 9, 24, 25, 80):
        hasher = ContentHasher(TINY)
        hasher.update(bytes(size))
        assert hasher.finish() == hasher.finish()


def test_takes_any_contiguous_buffer() -> None:
    numbers = array("I", range(1000))
    expected = cid_of_bytes(numbers.tobytes(), TINY_WIDE)
    assert cid_of_bytes(numbers, TINY_WIDE) == expected
    assert cid_of_bytes(bytearray(numbers.tobytes()), TINY_WIDE) == expected


TINY_WIDE = ImportProfile("wide", chunk_size=7, width=30)
LEAF = hashlib.sha256(bytes(8)).digest()


def test_refuses_leaves_that_no_file_has() -> None:
    builder = DagBuilder(TINY)
    for size in (-1, 0, 9):
        with pytest.raises(ValueError, match="1 to 8 bytes"):
            builder.add_leaf(LEAF, size)
    builder.add_leaf(LEAF, 8)
    builder.add_leaf(LEAF, 7)
    with pytest.raises(ValueError, match="ends a file"):
        builder.add_leaf(LEAF, 1)


def test_refuses_bytes_once_finished() -> None:
    hasher = ContentHasher(TINY)
    hasher.update(bytes(8))
    hasher.finish()
    with pytest.raises(ValueError, match="ends a file"):
        hasher.update(bytes(8))


def test_refuses_a_file_over_the_largest_of_the_profile() -> None:
    assert TINY.max_size == 8 * 3**4
    cid_of_bytes(bytes(TINY.max_size), TINY)
    with pytest.raises(LimitExceededError, match="may have 648 bytes") as caught:
        cid_of_bytes(bytes(TINY.max_size + 1), TINY)
    assert caught.value.values == {"limit": TINY.max_size}


class Trickle(io.RawIOBase):
    """A stream that fills at most ``step`` bytes of a buffer, then has none now."""

    def __init__(self, content: bytes, step: int, end: int | None) -> None:
        self._content = io.BytesIO(content)
        self._step = step
        self._end = end
        self.asked: list[int] = []

    def readinto(self, buffer: bytearray) -> int | None:  # type: ignore[override] # narrower on purpose: it is what we pass
        self.asked.append(len(buffer))
        piece = self._content.read(self._step)
        buffer[: len(piece)] = piece
        return len(piece) or self._end


def test_reads_a_stream_through_one_chunk_and_leaves_it_open() -> None:
    content = bytes(range(200))
    stream = Trickle(content, step=5, end=0)
    dag = cid_of_stream(stream, TINY)
    assert dag.root == cid_of_bytes(content, TINY)
    assert set(stream.asked) == {TINY.chunk_size}
    assert not stream.closed


def test_a_stream_without_bytes_now_has_not_ended() -> None:
    with pytest.raises(BlockingIOError):
        cid_of_stream(Trickle(b"abc", step=2, end=None), TINY)


@pytest.mark.parametrize(("chunk_size", "width"), [(0, 3), (8, 1)])
def test_refuses_profiles_that_cut_nothing(chunk_size: int, width: int) -> None:
    with pytest.raises(ValueError, match="A profile needs"):
        ImportProfile("none", chunk_size, width)


def test_the_profile_is_that_of_ipip_499() -> None:
    assert ImportProfile("unixfs-v1-2025", 1_048_576, 1024) == UNIXFS_V1_2025
