"""One node of a file's DAG: dag-pb around UnixFS, written and read canonically.

The bytes follow the IPLD dag-pb specification (links before data; of a link: hash,
empty name, total size) and the UnixFS specification (type File, filesize,
blocksizes unpacked), as ``ipfs-unixfs-importer`` writes them. There is one encoding
for each node, so reading re-encodes and compares: anything else is refused.
"""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple

from vision_o3.content import varint
from vision_o3.content.cid import CID, CID_SIZE
from vision_o3.errors import InvalidCIDError, MalformedBlockError

MAX_NODE_SIZE = 2 << 20
"""Bytes; what IPFS tools exchange at most as one block."""

_HASH = b"\x0a" + varint.encode(CID_SIZE)
_NAME_AND_TSIZE = b"\x12\x00\x18"
_FILE_OF_SIZE = b"\x08\x02\x18"


class Link(NamedTuple):
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
    node = bytearray()
    for link in links:
        body = _HASH + bytes(link.cid) + _NAME_AND_TSIZE + varint.encode(link.total)
        node += b"\x12" + varint.encode(len(body)) + body
    unixfs = bytearray(_FILE_OF_SIZE + varint.encode(sum(link.size for link in links)))
    for link in links:
        unixfs += b"\x20" + varint.encode(link.size)
    node += b"\x0a" + varint.encode(len(unixfs)) + unixfs
    return bytes(node)


def decode_node(raw: bytes, *, width: int) -> Tuple[Link, ...]:
    """Return the links of a node, in order.

    Raises:
        MalformedBlockError: Not the canonical bytes of a file node with at most
            ``width`` links.
    """
    if len(raw) > MAX_NODE_SIZE:
        raise MalformedBlockError(
            f"A node has {len(raw)} bytes; at most {MAX_NODE_SIZE} are accepted."
        )
    try:
        links = _read_links(raw, width)
    except (ValueError, InvalidCIDError) as error:
        raise MalformedBlockError(f"A node is malformed: {error}.") from error
    if encode_node(links) != raw:
        raise MalformedBlockError("A node is not a UnixFS file in canonical form.")
    return links


def _read_links(raw: bytes, width: int) -> Tuple[Link, ...]:
    """Return what stands where links stand in canonical form.

    Framing is skipped unread: the caller compares it by encoding the links.
    """
    named: List[Tuple[CID, int]] = []
    at = 0
    while raw[at : at + 1] == b"\x12":
        if len(named) == width:
            raise ValueError(f"it has more than {width} links")
        _, at = varint.decode(raw, at + 1)
        at += len(_HASH)
        cid = CID.from_bytes(raw[at : at + CID_SIZE])
        total, at = varint.decode(raw, at + CID_SIZE + len(_NAME_AND_TSIZE))
        named.append((cid, total))
    _, at = varint.decode(raw, at + 1)
    _, at = varint.decode(raw, at + len(_FILE_OF_SIZE))
    links = []
    for cid, total in named:
        size, at = varint.decode(raw, at + 1)
        links.append(Link(cid, size, total))
    return tuple(links)
