"""Relay stored bytes, each leaf checked against the CID before it is handed on."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio.to_thread

from vision_o3.content.leaves import LeafTable
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import LengthMismatchError
from vision_o3.registry.keeping import Kept

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from vision_o3.content.cid import CID
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectStore

_AHEAD = 1
"""Leaves of a stream that are verified while one is being handed on."""
_FEW = 16
"""Streams up to which each reads ahead; more keep each other busy, and cost memory."""
_MOST_LEAVES = 8
"""Leaves that ``read`` asks the store for at once: fewer requests for what is large."""
_CACHED_LEAVES = 1_000_000
"""Leaves whose digests are kept in memory: 32 MB, for 1 TB of artifacts."""


def leaf_table(root: CID, size: int, sidecar: bytes | None) -> LeafTable:
    """Return the verified leaf digests of a file, from its sidecar if it has one.

    Raises:
        IntegrityError: The sidecar is not the DAG that the root names, or the DAG is
            not of ``size`` bytes.
    """
    if sidecar is None:
        return LeafTable.of_raw(root, size)
    table = LeafTable.from_sidecar(root, sidecar)
    if table.size != size:
        raise LengthMismatchError(
            f"The DAG of {root} is of {table.size} bytes, not of {size}.",
            expected=size,
            actual=table.size,
        )
    return table


class Relay:
    """Reads artifacts for handing on. Safe in any thread; holds ≤ 32 MB of digests."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._tables: Kept[LeafTable] = Kept(_CACHED_LEAVES)
        self._streams = 0

    def sidecar(self, version: Version) -> bytes | None:
        """Return the version's sidecar as stored; ``None`` for content of one leaf.

        Raises:
            ObjectNotFoundError, StorageError: The store failed.
        """
        if version.sidecar_key is None:
            return None
        return self._store.get(
            version.sidecar_key, max_size=max_sidecar_size(version.file_size)
        )

    def table(self, version: Version) -> LeafTable:
        """Return the version's leaf digests, verified; kept for the next call.

        Raises:
            IntegrityError: The stored sidecar is not what the CID names.
            ObjectNotFoundError, StorageError: The store failed.
        """
        table = self._tables.find(version.cid)
        if table is None:
            table = leaf_table(version.cid, version.file_size, self.sidecar(version))
            self._tables.keep(version.cid, table, table.count)
        return table

    def read(self, version: Version, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes ``[start, end)`` of a version, verified, leaf by leaf.

        As ``stream``, for a thread and for less: blocks, reads from the store one leaf
        first and up to ``_MOST_LEAVES`` at once when more are asked for, and holds
        these.

        Raises:
            IntegrityError, ObjectNotFoundError, StorageError: As for ``stream``.
        """
        table = self.table(version)
        indices = table.covering(start, end)
        count = 1
        while indices:
            batch, indices = indices[:count], indices[count:]
            first, last = table.span(batch[0])[0], table.span(batch[-1])[1]
            content = memoryview(self._store.get_range(version.object_key, first, last))
            for index in batch:
                at, until = table.span(index)
                leaf = content[at - first : until - first]
                table.verify(index, leaf)
                yield leaf[max(start - at, 0) : min(end, until) - at]
            count = min(2 * count, _MOST_LEAVES)

    async def stream(
        self, version: Version, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield the bytes ``[start, end)`` of a version, verified, in order.

        Whole leaves are read, also where the range takes a part of one, so nothing
        unverified is handed on. The next leaf is verified while the caller is busy
        with the last: two are held, and one when there are many streams. Close the
        generator when leaving it early.

        Raises:
            IntegrityError: The store's bytes are not what the CID names.
            ObjectNotFoundError, StorageError: The store failed.
        """
        if start == end:
            return
        table = await anyio.to_thread.run_sync(self.table, version)
        indices = table.covering(start, end)
        first, last = table.span(indices[0])[0], table.span(indices[-1])[1]
        loop = asyncio.get_running_loop()
        ahead: deque[tuple[int, memoryview, asyncio.Future[None]]] = deque()

        async def verified() -> memoryview:
            index, leaf, check = ahead.popleft()
            await check
            at, until = table.span(index)
            return leaf[max(start - at, 0) : min(end, until) - at]

        read = iter(indices)
        self._streams += 1
        pieces = self._store.stream(version.object_key, first, last)
        try:
            async with (
                aclosing(pieces),
                aclosing(_cut(pieces, table.chunk_size)) as leaves,
            ):
                async for leaf in leaves:
                    index = next(read)
                    check = loop.run_in_executor(None, table.verify, index, leaf)
                    ahead.append((index, leaf, check))
                    while len(ahead) > (_AHEAD if self._streams <= _FEW else 0):
                        yield await verified()
            while ahead:
                yield await verified()
        finally:
            self._streams -= 1
            for _, _, check in ahead:
                check.cancel()
        if (missing := next(read, None)) is not None:
            raise LengthMismatchError(
                f"The object {version.object_key} ended early.",
                expected=last,
                actual=table.span(missing)[0],
            )


async def _cut(
    pieces: AsyncIterator[bytes | memoryview], size: int
) -> AsyncGenerator[memoryview]:
    """Cut a stream into pieces of ``size`` bytes; the last may be shorter."""
    gathered = bytearray()
    async for piece in pieces:
        view = memoryview(piece)
        if not gathered and len(view) == size:
            yield view
            continue
        while view:
            taken = size - len(gathered)
            gathered += view[:taken]
            view = view[taken:]
            if len(gathered) == size:
                yield memoryview(gathered)
                gathered = bytearray()
    if gathered:
        yield memoryview(gathered)
