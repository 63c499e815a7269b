"""Relay stored bytes, each leaf checked against the CID before it is handed on."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio.to_thread

from vision_o3.content.leaves import LeafTable
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import LengthMismatchError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vision_o3.content.cid import CID
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectStore

_AHEAD = 1
"""Leaves of a stream that are verified while one is being handed on."""
_FEW = 16
"""Streams up to which each reads ahead; more keep each other busy, and cost memory."""
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
        self._tables: OrderedDict[CID, LeafTable] = OrderedDict()
        self._leaves = 0
        self._lock = threading.Lock()
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
        with self._lock:
            table = self._tables.get(version.cid)
            if table is not None:
                self._tables.move_to_end(version.cid)
                return table
        table = leaf_table(version.cid, version.file_size, self.sidecar(version))
        with self._lock:
            if version.cid not in self._tables:
                self._tables[version.cid] = table
                self._leaves += table.count
            while self._leaves > _CACHED_LEAVES and len(self._tables) > 1:
                _, dropped = self._tables.popitem(last=False)
                self._leaves -= dropped.count
        return table

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
