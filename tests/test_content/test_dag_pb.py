from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.content import cids
from vision_o3.content import varint
from vision_o3.content.cid import CID, RAW
from vision_o3.content.dag_pb import MAX_NODE_SIZE, Link, decode_node, encode_node
from vision_o3.errors import MalformedBlockError

WIDTH = 4
links = st.lists(
    st.builds(Link, cids, st.integers(0, 2**60), st.integers(0, 2**63 - 1)),
    max_size=WIDTH,
)


@given(links)
def test_nodes_round_trip(expected: list[Link]) -> None:
    assert list(decode_node(encode_node(expected), width=WIDTH)) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_the_encoding_of_links_or_an_error(raw: bytes) -> None:
    try:
        decoded = decode_node(raw, width=WIDTH)
    except MalformedBlockError:
        return
    assert encode_node(decoded) == raw


@given(links, st.data())
def test_a_damaged_node_is_never_read_as_it_was(
    expected: list[Link], data: st.DataObject
) -> None:
    raw = bytearray(encode_node(expected))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_node(bytes(raw), width=WIDTH)
    except MalformedBlockError:
        return
    assert list(decoded) != expected
    assert encode_node(decoded) == raw


def field(tag: int, payload: bytes) -> bytes:
    return bytes((tag,)) + varint.encode(len(payload)) + payload


HASH = field(0x0A, bytes(CID.of_block(RAW, b"abc")))
LINK = field(0x12, HASH + b"\x12\x00" + b"\x18\x03")
DATA = field(0x0A, b"\x08\x02\x18\x03\x20\x03")


def test_the_template_of_the_cases_below_is_right() -> None:
    (link,) = decode_node(LINK + DATA, width=1)
    assert link == Link(CID.of_block(RAW, b"abc"), 3, 3)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(LINK, id="no data"),
        pytest.param(DATA + LINK, id="data before links"),
        pytest.param(DATA, id="a block size without a link"),
        pytest.param(LINK + LINK + DATA, id="a link without a block size"),
        pytest.param(LINK + DATA + b"\x00", id="a trailing byte"),
        pytest.param(LINK + DATA + DATA, id="data twice"),
        pytest.param(LINK + field(0x1A, b"x") + DATA, id="an unknown field"),
        pytest.param(field(0x12, HASH + b"\x18\x03") + DATA, id="no name"),
        pytest.param(field(0x12, HASH + b"\x12\x00") + DATA, id="no size"),
        pytest.param(field(0x12, HASH + b"\x12\x01a\x18\x03") + DATA, id="a name"),
        pytest.param(field(0x12, HASH + b"\x12\x00\x18\x83\x00") + DATA, id="varint"),
        pytest.param(
            field(0x12, HASH + b"\x18\x03" + b"\x12\x00") + DATA, id="field order"
        ),
        pytest.param(
            field(0x12, field(0x0A, b"\x12\x20" + bytes(32)) + b"\x12\x00\x18\x03")
            + DATA,
            id="a CIDv0",
        ),
        pytest.param(
            field(
                0x12, field(0x0A, b"\x01\x71\x12\x20" + bytes(32)) + b"\x12\x00\x18\3"
            )
            + DATA,
            id="a link to another codec",
        ),
        pytest.param(LINK + field(0x0A, b"\x08\x01\x18\x03\x20\x03"), id="a directory"),
        pytest.param(
            LINK + field(0x0A, b"\x08\x02\x12\x01x\x18\x03\x20\x03"), id="inline data"
        ),
        pytest.param(
            LINK + field(0x0A, b"\x08\x02\x18\x04\x20\x03"), id="another filesize"
        ),
        pytest.param(
            LINK + field(0x0A, b"\x08\x02\x18\x03\x22\x01\x03"), id="packed block sizes"
        ),
        pytest.param(
            LINK + field(0x0A, b"\x08\x02\x18\x03\x20\x03\x38\x01"), id="a mode"
        ),
    ],
)
def test_refuses_what_is_not_the_canonical_node_of_a_file(raw: bytes) -> None:
    with pytest.raises(MalformedBlockError):
        decode_node(raw, width=WIDTH)


def test_refuses_more_links_than_the_width() -> None:
    node = encode_node([Link(CID.of_block(RAW, b"abc"), 3, 3)] * (WIDTH + 1))
    assert len(decode_node(node, width=WIDTH + 1)) == WIDTH + 1
    with pytest.raises(MalformedBlockError, match="more than 4 links"):
        decode_node(node, width=WIDTH)


def test_refuses_a_node_over_two_mebibytes_unread() -> None:
    with pytest.raises(MalformedBlockError, match=f"{MAX_NODE_SIZE + 1} bytes"):
        decode_node(bytes(MAX_NODE_SIZE + 1), width=WIDTH)
