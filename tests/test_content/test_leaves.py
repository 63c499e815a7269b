"""The verifier lets through the bytes that a CID names, and no others."""

from __future__ import annotations

import hashlib
import itertools
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.content import TINY, pieces, profiled_contents
from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.content.dag import ContentHasher, cid_of_bytes
from vision_o3.content.leaves import LeafTable, RangeVerifier
from vision_o3.content.profile import ImportProfile
from vision_o3.errors import (
    DigestMismatchError,
    IntegrityError,
    InvalidRangeError,
    LengthMismatchError,
    MissingBlockError,
)

CONTENT = bytes(range(60))
"""8 leaves under ``TINY``, the last of 4 bytes."""


def table_of(content: bytes, profile: ImportProfile = TINY) -> LeafTable:
    hasher = ContentHasher(profile)
    hasher.update(content)
    dag = hasher.finish()
    sidecar = dag.sidecar()
    if sidecar is None:
        return LeafTable.of_raw(dag.root, dag.size, profile)
    return LeafTable.from_sidecar(dag.root, sidecar, profile)


TABLE = table_of(CONTENT)


def through(table: LeafTable, start: int, end: int, fed: list[bytes]) -> bytes:
    """Return what a verifier lets through, if it finishes."""
    verifier = RangeVerifier(table, start, end)
    passed = b"".join(bytes(leaf) for piece in fed for leaf in verifier.feed(piece))
    verifier.finish()
    return passed


def test_a_table_holds_32_bytes_a_leaf() -> None:
    assert TABLE.count == 8
    assert len(TABLE._digests) == 8 * 32


def test_a_table_tells_each_leafs_digest() -> None:
    for index in range(TABLE.count):
        start, end = TABLE.span(index)
        assert TABLE.digest(index) == hashlib.sha256(CONTENT[start:end]).digest()
    for index in (-1, 8):
        with pytest.raises(IndexError):
            TABLE.digest(index)


def test_leaves_lie_one_after_the_other() -> None:
    spans = [TABLE.span(index) for index in range(TABLE.count)]
    assert spans[0] == (0, 8)
    assert spans[-1] == (56, 60)
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    for index in (-1, 8):
        with pytest.raises(IndexError):
            TABLE.span(index)
        with pytest.raises(IndexError):
            TABLE.verify(index, b"")


def test_covering_names_the_leaves_with_a_byte_in_the_range() -> None:
    for start, end in itertools.combinations_with_replacement(range(61), 2):
        touched = {at // 8 for at in range(start, end)}
        assert set(TABLE.covering(start, end)) == touched


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (0, 61), (5, 4), (61, 61)])
def test_covering_refuses_ranges_outside_the_file(start: int, end: int) -> None:
    with pytest.raises(InvalidRangeError) as caught:
        TABLE.covering(start, end)
    assert caught.value.values == {"size": 60}


def test_verify_takes_the_leaf_alone() -> None:
    TABLE.verify(1, CONTENT[8:16])
    TABLE.verify(1, memoryview(CONTENT)[8:16])
    TABLE.verify(1, array("I", memoryview(CONTENT)[8:16].cast("I")))
    TABLE.verify(7, CONTENT[56:])
    with pytest.raises(DigestMismatchError) as caught:
        TABLE.verify(1, CONTENT[:8])
    assert caught.value.values["leaf"] == 1
    for leaf in (CONTENT[8:15], CONTENT[8:17], b""):
        with pytest.raises(LengthMismatchError):
            TABLE.verify(1, leaf)
    with pytest.raises(LengthMismatchError):
        TABLE.verify(7, CONTENT[56:] + bytes(4))


def test_a_raw_file_is_its_own_leaf() -> None:
    table = LeafTable.of_raw(CID.of_block(RAW, b"abc"), 3)
    assert (table.size, table.count, table.span(0)) == (3, 1, (0, 3))
    table.verify(0, b"abc")
    assert through(table, 0, 3, [b"a", b"bc"]) == b"abc"


def test_a_wrong_size_claimed_for_a_raw_file_lets_nothing_through() -> None:
    root = CID.of_block(RAW, b"abc")
    for claimed in (-1, 2**20 + 1):
        with pytest.raises(LengthMismatchError):
            LeafTable.of_raw(root, claimed)
    with pytest.raises(DigestMismatchError):
        LeafTable.of_raw(root, 0)
    for claimed in (1, 2, 4, 100):
        with pytest.raises(IntegrityError):
            through(LeafTable.of_raw(root, claimed), 0, claimed, [b"abc"])


def test_the_empty_file_needs_no_bytes() -> None:
    table = LeafTable.of_raw(CID.of_block(RAW, b""), 0)
    assert (table.count, table.span(0)) == (1, (0, 0))
    table.verify(0, b"")
    assert through(table, 0, 0, [b"", b""]) == b""
    with pytest.raises(LengthMismatchError):
        through(table, 0, 0, [b"x"])


def test_a_node_without_its_sidecar_is_refused() -> None:
    with pytest.raises(MissingBlockError):
        LeafTable.of_raw(CID.of_block(DAG_PB, b""), 3)


def test_every_range_of_leaves_passes_in_pieces_of_every_size() -> None:
    edges = [*range(0, 60, 8), 60]
    for start, end in itertools.combinations_with_replacement(edges, 2):
        for size in range(1, 30):
            fed = [CONTENT[at : min(at + size, end)] for at in range(start, end, size)]
            assert through(TABLE, start, end, fed) == CONTENT[start:end]


def test_a_range_that_cuts_a_leaf_is_refused() -> None:
    edges = {*range(0, 60, 8), 60}
    for start, end in itertools.combinations(range(61), 2):
        if not edges.issuperset((start, end)):
            with pytest.raises(InvalidRangeError):
                RangeVerifier(TABLE, start, end)


@given(st.data())
def test_a_whole_file_passes_however_it_comes(data: st.DataObject) -> None:
    profile, content = data.draw(profiled_contents())
    fed = data.draw(pieces(content))
    assert through(table_of(content, profile), 0, len(content), fed) == content


def test_every_changed_bit_missing_and_extra_byte_of_a_file_is_refused() -> None:
    bad = []
    for at in range(len(CONTENT)):
        before, after = CONTENT[:at], CONTENT[at + 1 :]
        bad += [before + bytes([CONTENT[at] ^ 1 << bit]) + after for bit in range(8)]
        bad += [before + after, before, before + b"\xff" + CONTENT[at:]]
    bad.append(CONTENT + b"\x00")
    for content in bad:
        assert cid_of_bytes(content, TINY) != TABLE.root
        for size in (1, 8, 13, len(content) or 1):
            fed = [content[at : at + size] for at in range(0, len(content), size)]
            with pytest.raises(IntegrityError):
                through(TABLE, 0, 60, fed)


@given(profiled_contents(), st.data())
def test_other_bytes_never_pass(
    case: tuple[ImportProfile, bytes], data: st.DataObject
) -> None:
    profile, content = case
    other = data.draw(st.binary(max_size=len(content) + 2))
    verifier = RangeVerifier(table_of(content, profile), 0, len(content))
    passed = b""
    try:
        for piece in data.draw(pieces(other)):
            for leaf in verifier.feed(piece):
                passed += leaf
        verifier.finish()
    except IntegrityError:
        assert other != content
    else:
        assert other == content
    assert content.startswith(passed)


def test_leaves_before_a_bad_one_pass_and_the_right_one_may_follow() -> None:
    for whole in (True, False):
        verifier = RangeVerifier(TABLE, 0, 60)
        passed = []
        with pytest.raises(DigestMismatchError) as caught:  # noqa: PT012 - see `passed`
            for at in (0, 8, 10) if not whole else (0,):
                step = {0: 8, 8: 2, 10: 6}[at] if not whole else 16
                piece = bytearray(CONTENT[at : at + step])
                piece[-1] ^= at + step == 16
                passed += [bytes(leaf) for leaf in verifier.feed(piece)]
        assert caught.value.values["leaf"] == 1
        with pytest.raises(LengthMismatchError):
            verifier.finish()
        assert b"".join(map(bytes, verifier.feed(CONTENT[8:]))) == CONTENT[8:]
        verifier.finish()


def test_a_leaf_that_comes_whole_is_not_copied() -> None:
    piece = CONTENT[:20]
    first, second = RangeVerifier(TABLE, 0, 60).feed(piece)
    assert first.obj is piece
    assert second.obj is piece


def test_a_leaf_that_came_in_pieces_stays_while_the_next_comes() -> None:
    verifier = RangeVerifier(TABLE, 0, 24)
    leaves = [leaf for at in range(24) for leaf in verifier.feed(CONTENT[at : at + 1])]
    assert [bytes(leaf) for leaf in leaves] == [
        CONTENT[at : at + 8] for at in (0, 8, 16)
    ]
