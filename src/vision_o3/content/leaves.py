"""The verifier: which bytes a root CID names, leaf by leaf.

Two answers only: bytes, or ``IntegrityError``. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from typing import Any, List, Tuple

from vision_o3.content.cid import DIGEST_SIZE, CID
from vision_o3.content.dag import DagBuilder
from vision_o3.content.dag_pb import decode_node
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.content.sidecar import read_sidecar
from vision_o3.errors import (
    DigestMismatchError,
    InvalidCIDError,
    LengthMismatchError,
    MalformedBlockError,
    MissingBlockError,
)


class LeafTable:
    """The digests of a file's leaves, verified against its root CID.

    Holds 32 bytes for each leaf. Made by ``from_sidecar`` or ``of_raw``.

    Attributes:
        root: The file's CID.
        size: Its length in bytes.
        chunk_size: Bytes in every leaf but the last.
        count: Leaves; at least 1, also for the empty file.
    """

    def __init__(self, root: CID, size: int, chunk_size: int, digests: bytes) -> None:
        self.root = root
        self.size = size
        self.chunk_size = chunk_size
        self.count = len(digests) // DIGEST_SIZE
        self._digests = digests

    @classmethod
    def of_raw(
        cls, root: CID, size: int, profile: ImportProfile = UNIXFS_V1_2025
    ) -> LeafTable:
        """Return the table of a file that is one raw leaf, of the length claimed.

        The claim is checked with the leaf: bytes of another length are refused.

        Raises:
            MalformedBlockError: The root is a node, or the length more than a leaf's.
        """
        if not root.is_raw or not 0 <= size <= profile.chunk_size:
            raise MalformedBlockError(
                f"{root} with {size} bytes is not a file of one leaf."
            )
        return cls(root, size, profile.chunk_size, root.digest)

    @classmethod
    def from_sidecar(
        cls, root: CID, sidecar: bytes, profile: ImportProfile = UNIXFS_V1_2025
    ) -> LeafTable:
        """Return the table that a sidecar holds, once all of it is verified.

        Every node is hashed before it is read, and the DAG that the leaves give under
        the profile must be the root's, so one file has one accepted sidecar.

        Raises:
            DigestMismatchError: A node does not hash to the CID that links to it.
            MissingBlockError: The sidecar ends before the DAG does.
            MalformedBlockError: Any other difference from the profile.
        """
        sections = read_sidecar(root, sidecar)
        wanted: List[CID] = [root]
        builder = DagBuilder(profile)
        digests = bytearray()
        try:
            while wanted:
                cid = wanted.pop()
                if cid.is_raw:
                    digests += cid.digest
                    continue
                section = next(sections, None)
                if section is None:
                    raise MissingBlockError(f"The sidecar lacks the node {cid}.")
                named, block = section
                if named != cid or CID.of_block(cid.codec, block) != cid:
                    raise DigestMismatchError(
                        f"A node of the sidecar is not what {cid} names.",
                        expected=str(cid),
                        actual=str(CID.of_block(cid.codec, block)),
                    )
                links = decode_node(block, width=profile.width)
                for link in links:
                    if link.cid.is_raw:
                        builder.add_leaf(link.cid.digest, link.size)
                wanted.extend(link.cid for link in reversed(links))
        except (ValueError, InvalidCIDError) as error:
            raise MalformedBlockError(f"The sidecar is malformed: {error}") from error
        if next(sections, None) is not None:
            raise MalformedBlockError("The sidecar has more nodes than the DAG.")
        dag = builder.finish()
        if root.is_raw or dag.root != root:
            raise MalformedBlockError(f"The DAG of {root} does not follow the profile.")
        return cls(root, dag.size, profile.chunk_size, bytes(digests))

    def span(self, index: int) -> Tuple[int, int]:
        """Return where leaf ``index`` lies in the file: ``[start, end)``."""
        start = index * self.chunk_size
        return start, min(start + self.chunk_size, self.size)

    def covering(self, start: int, end: int) -> range:
        """Return the leaves that hold the bytes ``[start, end)``."""
        if start >= end:
            return range(0)
        return range(start // self.chunk_size, (end - 1) // self.chunk_size + 1)

    def verify(self, index: int, leaf: Any) -> None:
        """Return if ``leaf`` (bytes-like) is exactly leaf ``index``.

        Raises:
            LengthMismatchError: It has more or fewer bytes.
            DigestMismatchError: It has other bytes.
        """
        start, end = self.span(index)
        if len(leaf) != end - start:
            raise LengthMismatchError(
                f"Leaf {index} of {self.root} has {end - start} bytes, "
                f"not {len(leaf)}.",
                expected=end - start,
                actual=len(leaf),
                leaf=index,
            )
        expected = self._digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
        actual = hashlib.sha256(leaf).digest()
        if actual != expected:
            raise DigestMismatchError(
                f"Bytes {start} to {end} are not what {self.root} names.",
                expected=expected.hex(),
                actual=actual.hex(),
                leaf=index,
            )
