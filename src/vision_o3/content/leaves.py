"""The verifier: which bytes a root CID names, leaf by leaf.

Two answers only: bytes, or ``IntegrityError``. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Iterator, Sequence, Tuple

from vision_o3.content.cid import CID, DIGEST_SIZE
from vision_o3.content.dag_pb import Link, decode_node
from vision_o3.content.profile import UNIXFS_V1_2025, ImportProfile
from vision_o3.content.sidecar import SidecarReader
from vision_o3.errors import (
    DigestMismatchError,
    InvalidRangeError,
    LengthMismatchError,
    MalformedBlockError,
    MissingBlockError,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LeafTable:
    """The digests of a file's leaves, verified against its root CID.

    Holds 32 bytes for each leaf. Made by ``from_sidecar`` or ``of_raw``.

    Attributes:
        root: The file's CID.
        size: Its length in bytes.
        chunk_size: Bytes in every leaf but the last.
        count: Leaves; at least 1, also for the empty file.
    """

    __slots__ = ("_digests", "chunk_size", "count", "root", "size")

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

        The claim is checked with the leaf: bytes of another length are refused. That
        the file is empty is checked here, as then no bytes are there to check.

        Raises:
            MissingBlockError: The root is a node, so its sidecar is needed.
            LengthMismatchError: No such leaf is of that length.
        """
        if not root.is_raw:
            raise MissingBlockError(f"The DAG of {root} needs its sidecar.")
        if not 0 <= size <= profile.chunk_size:
            raise LengthMismatchError(
                f"{root} names 0 to {profile.chunk_size} bytes, not {size}.",
                expected=profile.chunk_size,
                actual=size,
            )
        table = cls(root, size, profile.chunk_size, root.digest)
        if size == 0:
            table.verify(0, b"")
        return table

    @classmethod
    def from_sidecar(
        cls, root: CID, sidecar: bytes, profile: ImportProfile = UNIXFS_V1_2025
    ) -> LeafTable:
        """Return the table that a sidecar holds, once all of it is verified.

        One pass: every node is hashed before it is read, and its shape must be the
        one that the profile gives to a file of this size, so a file has one accepted
        sidecar.

        Raises:
            MissingBlockError: The sidecar lacks a node of the DAG.
            DigestMismatchError: A node's bytes are not what the link to it names.
            LengthMismatchError: The sidecar ends within a node, or goes on at its end.
            MalformedBlockError: Any other difference from CARv1 or the profile.
        """
        if root.is_raw:
            raise MalformedBlockError(f"{root} is one leaf; it has no sidecar.")
        walk = _Walk(SidecarReader(root, sidecar), profile)
        size = walk.run(root)
        return cls(root, size, profile.chunk_size, bytes(walk.digests))

    def span(self, index: int) -> Tuple[int, int]:
        """Return where leaf ``index`` lies in the file: ``[start, end)``.

        Raises:
            IndexError: The file has no such leaf.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"{self.root} has leaves 0 to {self.count - 1}: {index}?")
        start = index * self.chunk_size
        return start, min(start + self.chunk_size, self.size)

    def covering(self, start: int, end: int) -> range:
        """Return the leaves that hold the bytes ``[start, end)``; none for no bytes.

        Raises:
            InvalidRangeError: The range lies outside the file.
        """
        if not 0 <= start <= end <= self.size:
            raise InvalidRangeError(
                f"{self.root} has {self.size} bytes, not [{start}, {end}).",
                size=self.size,
            )
        if start == end:
            return range(0)
        return range(start // self.chunk_size, (end - 1) // self.chunk_size + 1)

    def digest(self, index: int) -> bytes:
        """Return the sha2-256 digest of leaf ``index``.

        Raises:
            IndexError: The file has no such leaf.
        """
        self.span(index)
        return self._digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def verify(self, index: int, leaf: ReadableBuffer) -> None:
        """Return if ``leaf`` is exactly leaf ``index``.

        Raises:
            LengthMismatchError: It has more or fewer bytes.
            DigestMismatchError: It has other bytes.
            IndexError: The file has no such leaf.
        """
        start, end = self.span(index)
        size = memoryview(leaf).nbytes
        if size != end - start:
            raise LengthMismatchError(
                f"Leaf {index} of {self.root} has {end - start} bytes, not {size}.",
                expected=end - start,
                actual=size,
                leaf=index,
            )
        expected = self.digest(index)
        actual = hashlib.sha256(leaf).digest()
        if actual != expected:
            raise DigestMismatchError(
                f"The bytes [{start}, {end}) are not what {self.root} names.",
                expected=expected.hex(),
                actual=actual.hex(),
                leaf=index,
            )


class RangeVerifier:
    """Lets through the bytes ``[start, end)`` of a file, each leaf once verified.

    The range must start and end where a leaf does. Holds at most one leaf.

    Raises:
        InvalidRangeError: The range lies outside the file, or cuts a leaf.
    """

    def __init__(self, table: LeafTable, start: int, end: int) -> None:
        leaves = table.covering(start, end)
        if leaves and (table.span(leaves[0])[0], table.span(leaves[-1])[1]) != (
            start,
            end,
        ):
            raise InvalidRangeError(
                f"[{start}, {end}) cuts a leaf of {table.root}.", size=table.size
            )
        self._table = table
        self._end = end
        self._at = start
        self._gathered = bytearray()

    def feed(self, piece: ReadableBuffer) -> Iterator[memoryview]:
        """Take the next bytes; yield each leaf that they complete, as soon as verified.

        A leaf that lies within ``piece`` is yielded as a view of it, not copied. All
        of the iterator must be consumed before the next call.

        Raises:
            LengthMismatchError: There are bytes after the range.
            DigestMismatchError: A leaf has other bytes; it is dropped, so the right
                ones may be fed next.
        """
        rest = memoryview(piece).cast("B")
        while rest:
            if self._at == self._end:
                raise LengthMismatchError(
                    f"Bytes come after {self._end}, the end of the range.",
                    expected=self._end,
                    actual=self._end + len(rest),
                )
            index = self._at // self._table.chunk_size
            start, end = self._table.span(index)
            part = rest[: end - start - len(self._gathered)]
            rest = rest[len(part) :]
            leaf = part
            if len(part) < end - start:
                self._gathered += part
                if len(self._gathered) < end - start:
                    return
                leaf = memoryview(self._gathered)
                self._gathered = bytearray()
            self._table.verify(index, leaf)
            self._at = end
            yield leaf

    def finish(self) -> None:
        """Return if the whole range came.

        Raises:
            LengthMismatchError: Bytes are missing at its end.
        """
        came = self._at + len(self._gathered)
        if came != self._end:
            raise LengthMismatchError(
                f"The bytes ended at {came}, before {self._end}.",
                expected=self._end,
                actual=came,
            )


class _Walk:
    """Walks a DAG depth-first along its sidecar and gathers the leaves' digests."""

    def __init__(self, reader: SidecarReader, profile: ImportProfile) -> None:
        self.digests = bytearray()
        self._reader = reader
        self._profile = profile

    def run(self, root: CID) -> int:
        """Walk the whole DAG; return the size of its file in bytes."""
        _, links = self._take(root)
        size = sum(link.size for link in links)
        capacity = self._profile.chunk_size
        if not capacity < size <= self._profile.max_size:
            raise MalformedBlockError(
                f"{root} is a node for a file of {size} bytes; accepted are "
                f"{capacity + 1} to {self._profile.max_size}."
            )
        while capacity < size:
            capacity *= self._profile.width
        self._descend(links, size, capacity)
        self._reader.finish()
        return size

    def _descend(self, links: Sequence[Link], size: int, capacity: int) -> None:
        """Walk below a node for ``size`` bytes, which holds ``capacity`` when full."""
        span = capacity // self._profile.width
        full, rest = divmod(size, span)
        if [link.size for link in links] != [span] * full + [rest] * (rest > 0):
            raise MalformedBlockError("A node is not cut as the profile says.")
        for link in links:
            if link.cid.is_raw != (span == self._profile.chunk_size):
                raise MalformedBlockError("A leaf or node is at a wrong depth.")
            if link.cid.is_raw:
                total = link.size
                self.digests += link.cid.digest
            else:
                total, below = self._take(link.cid)
                self._descend(below, link.size, span)
            if link.total != total:
                raise MalformedBlockError(f"A link to {link.cid} has a wrong Tsize.")

    def _take(self, cid: CID) -> Tuple[int, Tuple[Link, ...]]:
        """Return the next node: the bytes of its blocks with all below, its links."""
        block = self._reader.take(cid)
        links = decode_node(block, width=self._profile.width)
        return len(block) + sum(link.total for link in links), links
