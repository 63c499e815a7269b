"""Name a file: cut it into leaves, join them into a balanced DAG.

One pass, the result independent of how the bytes come. The builder holds the links
of one unfinished node for each level, and, for the sidecar, the finished nodes: about
50 bytes for each MiB of the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.content.dag_pb import Link, encode_node
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.content.sidecar import encode_sidecar
from vision_o3.errors import DigestMismatchError, LimitExceededError

if TYPE_CHECKING:
    from typing import Protocol

    from _typeshed import ReadableBuffer

    class ReadableInto(Protocol):
        """A binary stream that fills a buffer, as files and ``io.BytesIO`` do."""

        def readinto(self, buffer: bytearray, /) -> Optional[int]:
            """Fill the buffer from its start; return the count, zero at the end."""
            ...


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


class _Subtree(NamedTuple):
    """A finished subtree: the link to it, and its nodes in depth-first order."""

    link: Link
    nodes: List[bytes]


class DagBuilder:
    """Joins leaves, given in order, into the DAG of a profile.

    As in ``ipfs-unixfs-importer``, all leaves lie at the same depth: each full run of
    ``width`` subtrees gets a node, and so does the rest, also when it is only one.
    """

    def __init__(self, profile: ImportProfile = UNIXFS_V1_2025) -> None:
        self._profile = profile
        self._levels: List[List[_Subtree]] = [[]]
        self._size = 0
        self._ended = False

    def add_leaf(self, digest: bytes, size: int) -> None:
        """Add the next leaf by its sha2-256 digest and length.

        Raises:
            LimitExceededError: The file is larger than the profile allows.
            ValueError: A leaf after the last one, longer than a chunk, or empty.
        """
        chunk_size, max_size = self._profile.chunk_size, self._profile.max_size
        if self._ended:
            raise ValueError("A leaf shorter than a chunk, or finish(), ends a file.")
        if not 0 < size <= chunk_size:
            raise ValueError(f"A leaf has 1 to {chunk_size} bytes, not {size}.")
        if self._size + size > max_size:
            raise LimitExceededError(
                f"A file may have {max_size} bytes.", limit=max_size
            )
        self._ended = size < chunk_size
        self._size += size
        self._add(0, _Subtree(Link(CID(RAW, digest), size, size), []))

    def finish(self) -> Dag:
        """Return the DAG; no leaf can be added any more.

        A file without a leaf is the empty file, whose one leaf is empty.
        """
        self._ended = True
        if not self._size:
            return Dag(CID.of_block(RAW, b""), 0, ())
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            self._join(level)
            level += 1
        (top,) = self._levels[level]
        self._levels = [[top]]
        return Dag(top.link.cid, self._size, tuple(top.nodes))

    def _add(self, level: int, subtree: _Subtree) -> None:
        if level == len(self._levels):
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
            nodes += child.nodes
        self._add(level + 1, _Subtree(link, nodes))


class ContentHasher:
    """Names bytes that come in pieces of any size. Copies and keeps none of them."""

    def __init__(self, profile: ImportProfile = UNIXFS_V1_2025) -> None:
        self._builder = DagBuilder(profile)
        self._chunk_size = profile.chunk_size
        self._leaf = hashlib.sha256()
        self._filled = 0

    def update(self, piece: ReadableBuffer) -> None:
        """Take the next bytes.

        Raises:
            LimitExceededError: The file is larger than the profile allows.
            ValueError: The hasher has finished.
        """
        rest = memoryview(piece).cast("B")
        while rest:
            part = rest[: self._chunk_size - self._filled]
            self._leaf.update(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == self._chunk_size:
                self._end_leaf()

    def finish(self) -> Dag:
        """Return the DAG of all bytes taken; no more can be.

        Raises:
            LimitExceededError: The file is larger than the profile allows.
        """
        if self._filled:
            self._end_leaf()
        return self._builder.finish()

    def _end_leaf(self) -> None:
        self._builder.add_leaf(self._leaf.digest(), self._filled)
        self._leaf = hashlib.sha256()
        self._filled = 0


def cid_of_bytes(
    content: ReadableBuffer, profile: ImportProfile = UNIXFS_V1_2025
) -> CID:
    """Return the CID of a file with this content."""
    hasher = ContentHasher(profile)
    hasher.update(content)
    return hasher.finish().root


def check_bytes(content: ReadableBuffer, expected: CID, what: str) -> None:
    """Return if these are the bytes that a CID names.

    Args:
        content: All of them.
        expected: The CID.
        what: What they are said to be, for the error.

    Raises:
        DigestMismatchError: They are not.
        LimitExceededError: There are more than the profile allows.
    """
    actual = cid_of_bytes(content)
    if actual != expected:
        raise DigestMismatchError(
            f"The {what} is {actual}, not {expected}.",
            expected=str(expected),
            actual=str(actual),
        )


def cid_of_stream(stream: ReadableInto, profile: ImportProfile = UNIXFS_V1_2025) -> Dag:
    """Return the DAG of all bytes that a binary stream still has.

    Reads into one buffer of a chunk; leaves the stream open.

    Raises:
        BlockingIOError: The stream does not block and has no bytes now.
        OSError: The stream failed.
    """
    hasher = ContentHasher(profile)
    buffer = bytearray(profile.chunk_size)
    view = memoryview(buffer)
    while True:
        count = stream.readinto(buffer)
        if count is None:
            raise BlockingIOError("The stream has no bytes now, and does not block.")
        if count == 0:
            return hasher.finish()
        hasher.update(view[:count])
