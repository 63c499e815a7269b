"""Only the one sidecar of a file is accepted; nothing else gives a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.content import TINY, profiled_contents
from vision_o3.content import varint
from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.content.dag import ContentHasher, Dag
from vision_o3.content.dag_pb import MAX_NODE_SIZE, Link, decode_node, encode_node
from vision_o3.content.leaves import LeafTable
from vision_o3.content.profile import ImportProfile
from vision_o3.content.sidecar import encode_sidecar, max_sidecar_size
from vision_o3.errors import (
    DigestMismatchError,
    IntegrityError,
    LengthMismatchError,
    MalformedBlockError,
    MissingBlockError,
)

CONTENT = bytes(range(76))
"""10 leaves under ``TINY``: levels of 4, 2 and 1 nodes, the last ones lone."""


def dag_of(content: bytes, profile: ImportProfile = TINY) -> Dag:
    hasher = ContentHasher(profile)
    hasher.update(content)
    return hasher.finish()


def sidecar_of(dag: Dag) -> bytes:
    sidecar = dag.sidecar()
    assert sidecar is not None
    return sidecar


DAG = dag_of(CONTENT)
SIDECAR = sidecar_of(DAG)
HEADER = encode_sidecar(DAG.root, [])


@given(profiled_contents())
def test_the_table_holds_the_leaves_of_the_file(
    case: tuple[ImportProfile, bytes],
) -> None:
    profile, content = case
    dag = dag_of(content, profile)
    sidecar = dag.sidecar()
    if sidecar is None:
        assert max_sidecar_size(len(content), profile) == 0
        return
    assert len(sidecar) <= max_sidecar_size(len(content), profile)
    table = LeafTable.from_sidecar(dag.root, sidecar, profile)
    assert (table.root, table.size) == (dag.root, len(content))
    for index in range(table.count):
        start, end = table.span(index)
        table.verify(index, content[start:end])


@given(st.integers(0, 2**60))
def test_the_largest_size_grows_with_the_file(size: int) -> None:
    assert max_sidecar_size(size) <= max_sidecar_size(size + 2**20)
    assert max_sidecar_size(size) <= size // 2**20 * 67 + 1024


def test_a_node_linked_twice_is_written_twice() -> None:
    dag = dag_of(bytes(8 * 9))
    assert len(dag.nodes) == 4
    assert len(set(dag.nodes)) == 2
    assert LeafTable.from_sidecar(dag.root, sidecar_of(dag), TINY).count == 9


def damaged() -> Iterator[bytes]:
    for at in range(len(SIDECAR)):
        for bit in range(8):
            yield SIDECAR[:at] + bytes([SIDECAR[at] ^ 1 << bit]) + SIDECAR[at + 1 :]
        yield SIDECAR[:at] + SIDECAR[at + 1 :]
        yield SIDECAR[:at]
    for at in range(len(SIDECAR) + 1):
        for extra in (0x00, 0x80):
            yield SIDECAR[:at] + bytes([extra]) + SIDECAR[at:]


def test_every_changed_bit_missing_and_extra_byte_is_refused() -> None:
    tried = 0
    for sidecar in damaged():
        tried += 1
        with pytest.raises(IntegrityError):
            LeafTable.from_sidecar(DAG.root, sidecar, TINY)
    assert tried > 11 * len(SIDECAR)


@given(st.binary(max_size=300), st.sampled_from([b"", HEADER, SIDECAR]))
def test_any_other_bytes_are_refused(end: bytes, start: bytes) -> None:
    if end or start is not SIDECAR:
        with pytest.raises(IntegrityError):
            LeafTable.from_sidecar(DAG.root, start + end, TINY)


@given(profiled_contents(), profiled_contents())
def test_the_sidecar_of_another_file_is_refused(
    one: tuple[ImportProfile, bytes], other: tuple[ImportProfile, bytes]
) -> None:
    first, second = dag_of(one[1], one[0]), dag_of(other[1], other[0])
    if first.root != second.root:
        with pytest.raises(IntegrityError):
            LeafTable.from_sidecar(first.root, second.sidecar() or b"", one[0])


def nodes_in(order: Callable[[Sequence[bytes]], Sequence[bytes]]) -> bytes:
    return encode_sidecar(DAG.root, order(DAG.nodes))


def section(cid: CID, block: bytes) -> bytes:
    body = bytes(cid) + block
    return varint.encode(len(body)) + body


ROOT = section(DAG.root, DAG.nodes[0])


@pytest.mark.parametrize(
    ("sidecar", "error"),
    [
        pytest.param(b"", MalformedBlockError, id="empty"),
        pytest.param(
            encode_sidecar(CID(DAG_PB, bytes(32)), DAG.nodes),
            MalformedBlockError,
            id="another root in the header",
        ),
        pytest.param(
            bytes.fromhex("0aa16776657273696f6e02") + SIDECAR,
            MalformedBlockError,
            id="the mark of CARv2",
        ),
        pytest.param(HEADER, MissingBlockError, id="no nodes"),
        pytest.param(HEADER + ROOT, MissingBlockError, id="the root alone"),
        pytest.param(nodes_in(lambda nodes: nodes[:-1]), MissingBlockError, id="short"),
        pytest.param(
            nodes_in(lambda nodes: nodes[1:]), MissingBlockError, id="no root"
        ),
        pytest.param(
            nodes_in(lambda nodes: [*nodes[:2], *nodes[:1:-1]]),
            MissingBlockError,
            id="another order",
        ),
        pytest.param(
            nodes_in(lambda nodes: [*nodes, nodes[-1]]),
            LengthMismatchError,
            id="a node too many",
        ),
        pytest.param(SIDECAR[:-1], LengthMismatchError, id="cut within a node"),
        pytest.param(SIDECAR + b"\x00", LengthMismatchError, id="a trailing byte"),
        pytest.param(
            HEADER + section(DAG.root, DAG.nodes[1]),
            DigestMismatchError,
            id="another block under the root's name",
        ),
        pytest.param(HEADER + b"\x80", MalformedBlockError, id="half a varint"),
        pytest.param(
            HEADER + bytes([ROOT[0] | 0x80, ROOT[1] | 0x80, 0]) + ROOT[2:],
            MalformedBlockError,
            id="a varint longer than needed",
        ),
        pytest.param(
            HEADER + section(DAG.root, b""), MalformedBlockError, id="no block"
        ),
        pytest.param(
            HEADER + varint.encode(MAX_NODE_SIZE + 37) + bytes(MAX_NODE_SIZE + 37),
            MalformedBlockError,
            id="a block over two mebibytes",
        ),
    ],
)
def test_says_how_a_sidecar_is_wrong(
    sidecar: bytes, error: type[IntegrityError]
) -> None:
    with pytest.raises(error):
        LeafTable.from_sidecar(DAG.root, sidecar, TINY)


def test_a_raw_root_has_no_sidecar() -> None:
    root = CID.of_block(RAW, b"")
    with pytest.raises(MalformedBlockError, match="no sidecar"):
        LeafTable.from_sidecar(root, encode_sidecar(root, []), TINY)


def leaf(size: int) -> Link:
    return Link(CID.of_block(RAW, bytes(size)), size, size)


def over(*links: Link) -> tuple[Link, bytes]:
    block = encode_node(links)
    size, total = sum(link.size for link in links), sum(link.total for link in links)
    return Link(CID.of_block(DAG_PB, block), size, len(block) + total), block


def refused(reason: str, nodes: list[bytes]) -> None:
    root = CID.of_block(DAG_PB, nodes[0])
    with pytest.raises(MalformedBlockError, match=reason):
        LeafTable.from_sidecar(root, encode_sidecar(root, nodes), TINY)


def test_the_dags_below_are_built_as_the_profile_says() -> None:
    first, first_node = over(leaf(8), leaf(8), leaf(8))
    second, second_node = over(leaf(3))
    root, root_node = over(first, second)
    nodes = (root_node, first_node, second_node)
    assert dag_of(bytes(27)) == Dag(root.cid, 27, nodes)


def test_refuses_a_root_over_one_leaf_or_none() -> None:
    for links in ([], [leaf(0)], [leaf(3)], [leaf(8)], [leaf(8), leaf(0)]):
        refused("accepted are 9 to 648", [encode_node(links)])


def test_refuses_an_empty_last_leaf() -> None:
    refused("not cut", [over(leaf(8), leaf(8), leaf(0))[1]])


def test_refuses_leaves_of_other_sizes() -> None:
    for sizes in ([7, 8], [8, 7, 1], [9, 8], [4, 8, 8], [16, 3]):
        refused("not cut", [over(*map(leaf, sizes))[1]])


def test_refuses_a_lone_last_leaf_beside_a_node() -> None:
    first, node = over(leaf(8), leaf(8), leaf(8))
    refused("wrong depth", [over(first, leaf(3))[1], node])


def test_refuses_a_node_in_place_of_a_leaf() -> None:
    low, node = over(leaf(8))
    refused("wrong depth", [over(low, leaf(8))[1], node])


def test_refuses_a_level_too_many() -> None:
    low, node = over(leaf(8), leaf(8))
    refused("not cut", [over(low)[1], node])


def test_refuses_a_subtree_that_is_not_of_the_size_linked() -> None:
    first, first_node = over(leaf(8), leaf(8), leaf(8))
    second, second_node = over(leaf(3))
    claimed = over(first, second._replace(size=4))[1]
    refused("not cut", [claimed, first_node, second_node])


def test_refuses_a_wrong_tsize_of_leaf_and_node() -> None:
    refused("Tsize", [over(leaf(8), leaf(3)._replace(total=4))[1]])
    first, first_node = over(leaf(8), leaf(8), leaf(8))
    second, second_node = over(leaf(3))
    claimed = over(first, second._replace(total=second.total + 1))[1]
    refused("Tsize", [claimed, first_node, second_node])


def test_refuses_a_file_over_the_largest_of_the_profile_at_its_root() -> None:
    full = dag_of(bytes(648))
    links = decode_node(full.nodes[0], width=3)
    assert LeafTable.from_sidecar(full.root, sidecar_of(full), TINY).count == 81
    refused("9 to 648", [encode_node([Link(full.root, 648, 1), leaf(8)])])
    refused("9 to 648", [encode_node([*links[:2], links[2]._replace(size=2**62)])])


def test_refuses_a_node_that_is_not_canonical() -> None:
    refused("canonical", [over(leaf(8), leaf(8))[1] + b"\x00"])
