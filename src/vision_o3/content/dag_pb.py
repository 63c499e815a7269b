"""One node of a file's DAG: dag-pb around UnixFS, written and read canonically.

The bytes follow the IPLD dag-pb specification (links before data; of a link: hash,
empty name, total size) and the UnixFS specification (type File, filesize,
blocksizes unpacked), as ``ipfs-unixfs-importer`` writes them. There is one encoding
for each node, so reading re-encodes and compares: anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple

from vision_o3.content import varint
from vision_o3.content.cid import CID
from vision_o3.errors import InvalidCIDError, MalformedBlockError

MAX_NODE_SIZE = 2 << 20
"""Bytes; what IPFS tools exchange at most as one block."""

_FILE = 2
_CID_SIZE = 36


@dataclass(frozen=True)
class Link:
    """A link of a node to a subtree.

    Attributes:
        cid: The name of the block it points to.
        size: File bytes below it (UnixFS ``blocksizes``).
        total: Bytes of all blocks below it, nodes included (dag-pb ``Tsize``).
    """

    cid: CID
    size: int
    total: int


def encode_node(links: Sequence[Link]) -> bytes:
    """Return the canonical bytes of a file node with these links."""
    out = bytearray()
    for link in links:
        body = (
            b"\x0a" + varint.encode(_CID_SIZE) + bytes(link.cid)
            + b"\x12\x00"
            + b"\x18" + varint.encode(link.total)
        )  # fmt: skip
        out += b"\x12" + varint.encode(len(body)) + body
    unixfs = bytearray(bytes((0x08, _FILE, 0x18)))
    unixfs += varint.encode(sum(link.size for link in links))
    for link in links:
        unixfs += b"\x20" + varint.encode(link.size)
    return bytes(out) + b"\x0a" + varint.encode(len(unixfs)) + bytes(unixfs)


def decode_node(raw: bytes, *, width: int) -> Tuple[Link, ...]:
    """Return the links of a node, in order.

    Raises:
        MalformedBlockError: Not the canonical bytes of a file node with 1 to
            ``width`` links.
    """
    if len(raw) > MAX_NODE_SIZE:
        raise MalformedBlockError(f"A node has {len(raw)} bytes: too many.")
    try:
        links = _decode(raw, width)
    except (ValueError, IndexError, InvalidCIDError) as error:
        raise MalformedBlockError(f"A node is malformed: {error}.") from error
    if encode_node(links) != raw:
        raise MalformedBlockError("A node is not in canonical form.")
    return links


def _decode(raw: bytes, width: int) -> Tuple[Link, ...]:
    named = []
    at = 0
    while raw[at] == 0x12:
        length, at = varint.decode(raw, at + 1)
        end = at + length
        if raw[at : at + 2] != b"\x0a\x24" or raw[at + 38 : at + 41] != b"\x12\x00\x18":
            raise ValueError("a link is not hash, empty name, size")
        total, at_end = varint.decode(raw, at + 41)
        if at_end != end:
            raise ValueError("a link has trailing bytes")
        named.append((CID.from_bytes(raw[at + 2 : at + 38]), total))
        at = end
        if len(named) > width:
            raise ValueError(f"it has more than {width} links")
    if not named:
        raise ValueError("it has no links")
    if raw[at] != 0x0A:
        raise ValueError("it has no data")
    length, at = varint.decode(raw, at + 1)
    if at + length != len(raw) or raw[at : at + 3] != bytes((0x08, _FILE, 0x18)):
        raise ValueError("its data is not a UnixFS file")
    _, at = varint.decode(raw, at + 3)
    links = []
    for cid, total in named:
        if raw[at] != 0x20:
            raise ValueError("it has fewer block sizes than links")
        size, at = varint.decode(raw, at + 1)
        links.append(Link(cid, size, total))
    return tuple(links)
