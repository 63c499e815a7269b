"""The sidecar: a DAG's inner nodes as a CARv1, root first, depth-first.

With it any byte range of the plain file, from any server, can be checked leaf by
leaf. CARv1 (IPLD specification): a varint-framed dag-cbor header, then varint-framed
sections of CID and block. A node that is linked twice is written twice, so the nodes
stand exactly in the order in which a walk meets them, and a file has one sidecar.
"""

from __future__ import annotations

from typing import Sequence

from vision_o3.content import varint
from vision_o3.content.cid import CID, CID_SIZE, DAG_PB
from vision_o3.content.dag_pb import MAX_NODE_SIZE
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.errors import (
    DigestMismatchError,
    LengthMismatchError,
    MalformedBlockError,
    MissingBlockError,
)

_HEADER_SIZE = 59
_LARGEST_LINK = 64
"""Bytes in a node for one link, at most: CID, two sizes, framing."""
_LARGEST_FRAME = 64
"""Bytes of a section besides the node's links, at most: CID, filesize, framing."""


def encode_sidecar(root: CID, nodes: Sequence[bytes]) -> bytes:
    """Return the sidecar of these nodes, of which the first is the root."""
    sidecar = bytearray(_header(root))
    for node in nodes:
        sidecar += varint.encode(CID_SIZE + len(node))
        sidecar += bytes(CID.of_block(DAG_PB, node))
        sidecar += node
    return bytes(sidecar)


def max_sidecar_size(size: int, profile: ImportProfile = UNIXFS_V1_2025) -> int:
    """Return what the sidecar of a file of ``size`` bytes has at most, in bytes.

    Zero for a file of one leaf, which has none.
    """
    count = -(-size // profile.chunk_size)
    total = _HEADER_SIZE if count > 1 else 0
    while count > 1:
        nodes = -(-count // profile.width)
        total += count * _LARGEST_LINK + nodes * _LARGEST_FRAME
        count = nodes
    return total


class SidecarReader:
    """Hands out the nodes of a sidecar in its order, each verified.

    Raises:
        MalformedBlockError: The header is not that of a CARv1 with this one root.
    """

    def __init__(self, root: CID, sidecar: bytes) -> None:
        header = _header(root)
        if not sidecar.startswith(header):
            raise MalformedBlockError(
                f"The sidecar does not start as a CARv1 with the root {root}."
            )
        self._sidecar = sidecar
        self._at = len(header)

    def take(self, cid: CID) -> bytes:
        """Return the next node, which must be the one that ``cid`` names.

        Raises:
            MissingBlockError: The sidecar ends before it, or has another there.
            LengthMismatchError: The sidecar ends within it.
            DigestMismatchError: Its bytes are not what the CID names.
            MalformedBlockError: It is framed wrongly.
        """
        if self._at == len(self._sidecar):
            raise MissingBlockError(f"The sidecar ends before {cid}.", cid=str(cid))
        try:
            length, at = varint.decode(self._sidecar, self._at)
        except ValueError as error:
            raise MalformedBlockError(f"In the sidecar, {error}.") from error
        if not CID_SIZE < length <= CID_SIZE + MAX_NODE_SIZE:
            raise MalformedBlockError(f"The sidecar has a section of {length} bytes.")
        end = at + length
        if end > len(self._sidecar):
            raise LengthMismatchError(
                f"The sidecar ends within {cid}.",
                expected=end,
                actual=len(self._sidecar),
            )
        if self._sidecar[at : at + CID_SIZE] != bytes(cid):
            raise MissingBlockError(
                f"The sidecar has another node in the place of {cid}.", cid=str(cid)
            )
        block = self._sidecar[at + CID_SIZE : end]
        actual = CID.of_block(cid.codec, block)
        if actual != cid:
            raise DigestMismatchError(
                f"A node of the sidecar is not what {cid} names.",
                expected=str(cid),
                actual=str(actual),
            )
        self._at = end
        return block

    def finish(self) -> None:
        """Return if all was taken.

        Raises:
            LengthMismatchError: The sidecar goes on.
        """
        if self._at != len(self._sidecar):
            raise LengthMismatchError(
                "The sidecar goes on after its last node.",
                expected=self._at,
                actual=len(self._sidecar),
            )


def _header(root: CID) -> bytes:
    # dag-cbor {"roots": [root], "version": 1}: a CID is tag 42 around its binary
    # form after a zero byte.
    body = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + bytes(root) + b"\x67version\x01"
    return varint.encode(len(body)) + body
