"""Name a file: cut it into leaves, join them into a balanced DAG.

One pass, the result independent of how the bytes come. The builder holds the digests
of one unfinished node for each level, and, for the sidecar, the finished nodes: about
50 bytes for each MiB of the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO, List, Optional, Tuple

from vision_o3.content.cid import DAG_PB, RAW, CID
from vision_o3.content.dag_pb import Link, encode_node
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.content.sidecar import encode_sidecar


@dataclass(frozen=True)
class Dag:
    """A named file.

    Attributes:
        root: The file's CID.
        size: Its length in bytes.
        nodes: The inner nodes, root first, depth-first; none for a single leaf.
    """

    root: CID
    size: int
    nodes: Tuple[bytes, ...]

    def sidecar(self) -> Optional[bytes]:
        """Return the sidecar, or ``None`` for a file of one leaf, which needs none."""
        return encode_sidecar(self.root, self.nodes) if self.nodes else None


@dataclass
class _Subtree:
    """A finished subtree: the link to it, and its nodes in depth-first order."""

    link: Link
    nodes: List[bytes] = field(default_factory=list)


class DagBuilder:
    """Joins leaves, given in order, into the DAG of a profile."""

    def __init__(self, profile: ImportProfile = UNIXFS_V1_2025) -> None:
        self._profile = profile
        self._levels: List[List[_Subtree]] = [[]]
        self._size = 0
        self._ended = False

    def add_leaf(self, digest: bytes, size: int) -> None:
        """Add the next leaf by its sha2-256 digest and length.

        Raises:
            ValueError: A leaf after a short one, or longer than the profile's.
        """
        if self._ended or not 0 <= size <= self._profile.chunk_size:
            raise ValueError("Only the last leaf may be short, and none longer.")
        self._ended = size < self._profile.chunk_size
        self._size += size
        self._add(0, _Subtree(Link(CID(RAW, digest), size, size)))

    def finish(self) -> Dag:
        """Return the DAG; the builder is used up.

        A file without a leaf is the empty file.
        """
        if not self._size and not self._levels[0]:
            self.add_leaf(hashlib.sha256(b"").digest(), 0)
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._join(level)
            level += 1
        (top,) = self._levels[level]
        return Dag(top.link.cid, self._size, tuple(top.nodes))

    def _add(self, level: int, subtree: _Subtree) -> None:
        if len(self._levels) == level:
            self._levels.append([])
        if len(self._levels[level]) == self._profile.width:
            self._join(level)
        self._levels[level].append(subtree)

    def _join(self, level: int) -> None:
        """Make one node of all subtrees that wait on a level."""
        children, self._levels[level] = self._levels[level], []
        block = encode_node([child.link for child in children])
        link = Link(
            CID.of_block(DAG_PB, block),
            sum(child.link.size for child in children),
            len(block) + sum(child.link.total for child in children),
        )
        nodes = [block]
        for child in children:
            nodes.extend(child.nodes)
        self._add(level + 1, _Subtree(link, nodes))


class ContentHasher:
    """Names bytes that come in pieces of any size."""

    def __init__(self, profile: ImportProfile = UNIXFS_V1_2025) -> None:
        self._builder = DagBuilder(profile)
        self._chunk_size = profile.chunk_size
        self._leaf = hashlib.sha256()
        self._filled = 0

    def update(self, piece: Any) -> None:
        """Take the next bytes (any bytes-like object)."""
        view = memoryview(piece).cast("B")
        while len(view):
            part = view[: self._chunk_size - self._filled]
            self._leaf.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == self._chunk_size:
                self._end_leaf()

    def finish(self) -> Dag:
        """Return the DAG of all bytes taken; the hasher is used up."""
        if self._filled:
            self._end_leaf()
        return self._builder.finish()

    def _end_leaf(self) -> None:
        self._builder.add_leaf(self._leaf.digest(), self._filled)
        self._leaf = hashlib.sha256()
        self._filled = 0


def cid_of_bytes(content: Any, profile: ImportProfile = UNIXFS_V1_2025) -> CID:
    """Return the CID of a file with this content (any bytes-like object)."""
    hasher = ContentHasher(profile)
    hasher.update(content)
    return hasher.finish().root


def dag_of_stream(stream: BinaryIO, profile: ImportProfile = UNIXFS_V1_2025) -> Dag:
    """Return the DAG of all bytes that a binary stream still has."""
    hasher = ContentHasher(profile)
    buffer = bytearray(profile.chunk_size)
    view = memoryview(buffer)
    while True:
        count = stream.readinto(buffer)  # type: ignore[attr-defined] # BinaryIO omits it
        if not count:
            return hasher.finish()
        hasher.update(view[:count])
