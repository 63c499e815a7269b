"""The sidecar: a DAG's inner nodes as a CARv1, root first, depth-first.

With it any byte range of the plain file, from any server, can be checked leaf by
leaf. CARv1 (IPLD specification): a varint-framed dag-cbor header, then varint-framed
sections of CID and block.
"""

from __future__ import annotations

from typing import Iterator, Sequence, Tuple

from vision_o3.content import varint
from vision_o3.content.cid import DAG_PB, CID
from vision_o3.content.dag_pb import MAX_NODE_SIZE
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.errors import MalformedBlockError

_CID_SIZE = 36
_LARGEST_LINK = 64
"""Bytes in a node for one link, at most: 36 of CID, sizes and framing."""
_NODE_FRAME = 128


def encode_sidecar(root: CID, nodes: Sequence[bytes]) -> bytes:
    """Return the sidecar of these nodes, of which the first is the root."""
    out = bytearray(_header(root))
    for node in nodes:
        out += varint.encode(_CID_SIZE + len(node))
        out += bytes(CID.of_block(DAG_PB, node))
        out += node
    return bytes(out)


def read_sidecar(root: CID, sidecar: bytes) -> Iterator[Tuple[CID, bytes]]:
    """Yield each section's CID and block, in order; nothing is hashed yet.

    Raises:
        MalformedBlockError: Not a CARv1 with this root, or cut short.
    """
    header = _header(root)
    if sidecar[: len(header)] != header:
        raise MalformedBlockError("The sidecar is not a CARv1 with the expected root.")
    at = len(header)
    while at < len(sidecar):
        try:
            length, at = varint.decode(sidecar, at)
        except ValueError as error:
            raise MalformedBlockError(f"The sidecar is malformed: {error}.") from error
        end = at + length
        if not _CID_SIZE < length <= _CID_SIZE + MAX_NODE_SIZE or end > len(sidecar):
            raise MalformedBlockError("A section of the sidecar has a wrong length.")
        yield CID.from_bytes(sidecar[at : at + _CID_SIZE]), sidecar[at + _CID_SIZE : end]
        at = end


def max_sidecar_size(size: int, profile: ImportProfile = UNIXFS_V1_2025) -> int:
    """Return what the sidecar of a file of ``size`` bytes has at most, in bytes."""
    count = -(-size // profile.chunk_size)
    total = len(_header(CID.of_block(DAG_PB, b"")))
    while count > 1:
        nodes = -(-count // profile.width)
        total += count * _LARGEST_LINK + nodes * _NODE_FRAME
        count = nodes
    return total


def _header(root: CID) -> bytes:
    # dag-cbor {"roots": [root], "version": 1}: keys by length, CIDs as tag 42 with a
    # leading zero byte.
    body = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + bytes(root) + b"\x67version\x01"
    return varint.encode(len(body)) + body
