"""Relay stored bytes, each leaf checked against the CID before it is handed on.

They come from one of three places: a file on this machine (a local store's object),
the hot cache, or the store's stream. A store whose answer is wrong is asked once more;
if that is wrong too, the object is marked and the transfer ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from vision_o3.content.leaves import LeafTable
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import (
    IntegrityError,
    InvalidRangeError,
    LengthMismatchError,
    StorageError,
)
from vision_o3.registry.hot_cache import BlockUnavailableError
from vision_o3.registry.keeping import Kept
from vision_o3.registry.local_files import LocalFile
from vision_o3.registry.watching import UNWATCHED, Event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from vision_o3.content.cid import CID
    from vision_o3.registry.hot_cache import HotCache
    from vision_o3.registry.values import Version
    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore

_AHEAD = 1
"""Leaves of a stream that are verified while one is being handed on."""
_FEW = 16
"""Streams up to which each reads ahead and holds whole leaves. More keep each other
busy, and their memory adds up."""
_SMALL = 128 << 10
"""Bytes that one of many streams holds at a time, of what lies on this machine."""
_VERIFIERS = 4
"""Threads that read and verify. Not those that requests run on: these stay free."""
_WAITERS = 16
"""Threads that wait for the store before a download, or for a leaf once more."""
_MOST_LEAVES = 8
"""Leaves that ``read`` asks the store for at once: fewer requests for what is large."""
_CACHED_LEAVES = 1_000_000
"""Leaves whose digests are kept in memory: 32 MB, for 1 TB of artifacts."""
_KEPT_SIDECARS = 32 << 20
"""Bytes."""
_LOCKS = 64

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Marks(Protocol):
    """Takes note of objects that are not what their CIDs name."""

    def mark(self, key: str, cid: CID, reason: str) -> None:
        """Note it for a later look; raises nothing."""
        ...


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
    """Reads artifacts for handing on. Safe in any thread; ``stream`` is async.

    Holds at most 32 MB of digests and as much of sidecars.

    Args:
        cache: Where artifacts that are asked for are kept, if anywhere.
        marks: Told of objects that were wrong twice.
        watcher: Told of these too, and of what was wrong once.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        cache: HotCache | None = None,
        marks: Marks | None = None,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._cache = cache
        self._marks = marks
        self._tables: Kept[LeafTable] = Kept(_CACHED_LEAVES)
        self._sidecars: Kept[bytes] = Kept(_KEPT_SIDECARS)
        self._reading = tuple(threading.Lock() for _ in range(_LOCKS))
        self._streams = 0
        self._threads = ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="relay")
        self._waiting = ThreadPoolExecutor(_WAITERS, thread_name_prefix="relay-wait")
        if cache is not None:
            cache.read_by(self.from_store)

    def close(self) -> None:
        """End the threads, after what they have in work."""
        self._threads.shutdown()
        self._waiting.shutdown()

    def forget(self, cid: CID) -> None:
        """Drop what is kept in memory of a content."""
        self._tables.drop(cid)
        self._sidecars.drop(cid)

    # ------------------------------------------------------------------- sidecars

    def sidecar(self, version: Version) -> bytes | None:
        """Return the version's sidecar, verified; ``None`` for content of one leaf.

        Raises:
            IntegrityError: The stored sidecar is not what the CID names.
            ObjectNotFoundError, StorageError: The store failed.
        """
        if version.sidecar_key is None:
            return None
        sidecar = self._sidecars.find(version.cid)
        if sidecar is None:
            # Those who come meanwhile find what this one keeps.
            with self._reading[hash(version.cid) % _LOCKS]:
                sidecar = self._sidecars.find(version.cid)
                if sidecar is None:
                    sidecar = self._read_sidecar(version, version.sidecar_key)
        return sidecar

    def table(self, version: Version) -> LeafTable:
        """Return the version's leaf digests, verified; kept for the next call.

        Raises:
            IntegrityError, ObjectNotFoundError, StorageError: As for ``sidecar``.
        """
        table = self._tables.find(version.cid)
        if table is None:
            table = leaf_table(version.cid, version.file_size, self.sidecar(version))
            self._tables.keep(version.cid, table, table.count)
        return table

    def _read_sidecar(self, version: Version, key: str) -> bytes:
        sidecar = self.read_document(
            version,
            key,
            max_sidecar_size(version.file_size),
            lambda found: leaf_table(version.cid, version.file_size, found),
        )
        self._sidecars.keep(version.cid, sidecar, len(sidecar))
        return sidecar

    def read_document(
        self,
        version: Version,
        key: str,
        max_size: int,
        check: Callable[[bytes], object],
    ) -> bytes:
        """Return a small object of a version that passes a check.

        It is read again if it does not, and marked if it does not then.

        Raises:
            IntegrityError: As ``check`` raises.
            ObjectNotFoundError, StorageError: The store failed.
        """
        content = self._store.get(key, max_size=max_size)
        try:
            check(content)
        except IntegrityError as error:
            self._report("document.wrong", version, key, error)
            content = self._store.get(key, max_size=max_size)
            try:
                check(content)
            except IntegrityError as second:
                self._mark(key, version.cid, second)
                raise
        return content

    # ---------------------------------------------------------------- for threads

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
            content = memoryview(self._get_range(version, first, last))
            for index in batch:
                at, until = table.span(index)
                leaf = content[at - first : until - first]
                try:
                    table.verify(index, leaf)
                except IntegrityError as error:
                    leaf = self._read_again(version, table, index, error)
                yield leaf[max(start - at, 0) : min(end, until) - at]
            count = min(2 * count, _MOST_LEAVES)

    def _get_range(self, version: Version, start: int, end: int) -> bytes:
        """Return stored bytes; fewer if the object is shorter than its version."""
        try:
            return self._store.get_range(version.object_key, start, end)
        except InvalidRangeError as error:
            size = error.values.get("size", 0)
            if start >= size:
                return b""
            return self._store.get_range(version.object_key, start, size)

    def _read_again(
        self, version: Version, table: LeafTable, index: int, error: IntegrityError
    ) -> memoryview:
        """Return a leaf that was wrong once, if it is right now."""
        key = version.object_key
        self._report("leaf.wrong", version, key, error, leaf=index)
        try:
            leaf = memoryview(self._get_range(version, *table.span(index)))
            table.verify(index, leaf)
        except IntegrityError as second:
            self._mark(key, version.cid, second)
            raise
        return leaf

    # ------------------------------------------------------------ for event loops

    async def stream(
        self, version: Version, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield the bytes ``[start, end)`` of a version, verified, in order.

        Whole leaves are read, also where the range takes a part of one, so nothing
        unverified is handed on. Up to three leaves are held (one read, one verified,
        one with the caller); with many streams one at a time, or less. Close the
        generator when leaving it early.

        Raises:
            IntegrityError: The store's bytes are not what the CID names, also when
                asked for a second time.
            ObjectNotFoundError, StorageError: The store failed.
        """
        if start == end:
            return
        table, file = await self._in_thread(self._open, version)
        self._streams += 1
        try:
            async with aclosing(
                self._pieces(version, table, file, start, end)
            ) as pieces:
                del file
                async for piece in pieces:
                    yield piece
        finally:
            self._streams -= 1

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - the work's own
        """Do what waits for the store or database, on threads of our own.

        Requests have others, so that they go on while a store is slow.
        """
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._waiting, lambda: context.run(work, *arguments)
        )

    async def read_sidecar(self, version: Version) -> bytes | None:
        """Return what ``sidecar`` does, on an event loop."""
        return await self._in_thread(self.sidecar, version)

    def _open(self, version: Version) -> tuple[LeafTable, LocalFile | None]:
        """Return the leaf digests, and the object's file if it is on this machine."""
        table = self.table(version)
        descriptor = self._store.open_file(version.object_key)
        return table, None if descriptor is None else LocalFile(descriptor)

    def _pieces(
        self,
        version: Version,
        table: LeafTable,
        file: LocalFile | None,
        start: int,
        end: int,
    ) -> AsyncGenerator[memoryview]:
        """Choose where the bytes come from."""
        if file is not None:
            return self._from_object_file(file, version, table, start, end)
        if self._cache is not None and self._cache.takes(version.file_size):
            return self._through_cache(self._cache, version, table, start, end)
        return self.from_store(version, table, start, end)

    async def _from_object_file(
        self, file: LocalFile, version: Version, table: LeafTable, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes of a local store's file."""
        while start < end:
            pieces = self._from_file(file, table, start, end)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
                        start += len(piece)
            except IntegrityError as error:
                index = table.covering(start, end)[0]
                at, until = table.span(index)
                leaf = await self._in_thread(
                    self._read_again, version, table, index, error
                )
                yield leaf[start - at : min(end, until) - at]
                start = min(end, until)

    async def _through_cache(  # noqa: C901 - failures of store and disk, told apart
        self,
        cache: HotCache,
        version: Version,
        table: LeafTable,
        start: int,
        end: int,
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes out of the hot cache, which reads what it lacks."""
        dropped = -1
        while start < end:
            held = cache.open(version, table, start, end)
            block, last = held[0], min(end, cache.end_of_block(start))
            try:
                if block is not None:
                    pieces = self._from_file(block, table, start, last)
                    async with aclosing(pieces):
                        async for piece in pieces:
                            yield piece
                            start += len(piece)
            except BlockUnavailableError as error:
                if error.cause is not None:
                    raise error.cause from None
            except (IntegrityError, StorageError):  # of this disk, not of the store
                if block is not None:
                    cache.drop(version, start, block)
                if dropped != last:
                    dropped = last
                    continue  # once more through the cache, as all others do
            if start < last:
                pieces = self.from_store(version, table, start, last)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
                        start += len(piece)

    async def _from_file(
        self, file: LocalFile, table: LeafTable, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes of a file on this machine.

        Of few streams each hands on the very memory that was verified. Each of many
        verifies a leaf, then reads it once more as it goes out, a little at a time:
        what is held does not depend on how slow its caller is.
        """
        loop = asyncio.get_running_loop()
        ahead: asyncio.Future[memoryview] | None = None
        try:
            for index in table.covering(start, end):
                at, until = table.span(index)
                first, last = max(start, at), min(end, until)
                if not file.has(until):
                    await file.wait(until)
                if self._streams > _FEW and ahead is None:
                    sums = await loop.run_in_executor(
                        self._threads, file.check_leaf, table, index, _SMALL
                    )
                    for position, checksum in zip(
                        range(at, until, _SMALL), sums, strict=True
                    ):
                        stop = min(position + _SMALL, until)
                        if position < last and stop > first:
                            piece = file.read_checked(position, stop, checksum)
                            yield piece[
                                max(first - position, 0) : min(last, stop) - position
                            ]
                    continue
                leaf = await (
                    ahead
                    or loop.run_in_executor(self._threads, file.read_leaf, table, index)
                )
                ahead = None
                if until < end and self._streams <= _FEW:
                    following = table.span(index + 1)[1]
                    if file.has(following):
                        ahead = loop.run_in_executor(
                            self._threads, file.read_leaf, table, index + 1
                        )
                yield leaf[first - at : last - at]
                del leaf
        finally:
            if ahead is not None:
                ahead.cancel()

    async def from_store(
        self, version: Version, table: LeafTable, start: int, end: int
    ) -> AsyncGenerator[memoryview]:
        """Yield verified bytes as the store streams them, leaf by leaf."""
        loop = asyncio.get_running_loop()
        ahead: deque[tuple[int, memoryview, asyncio.Future[None]]] = deque()

        async def verified() -> memoryview:
            index, leaf, check = ahead.popleft()
            try:
                await check
            except IntegrityError as error:
                leaf = await self._in_thread(
                    self._read_again, version, table, index, error
                )
            at, until = table.span(index)
            return leaf[max(start - at, 0) : min(end, until) - at]

        leaves = self._stored_leaves(version, table, table.covering(start, end))
        try:
            async with aclosing(leaves):
                async for index, leaf in leaves:
                    check = loop.run_in_executor(
                        self._threads, table.verify, index, leaf
                    )
                    ahead.append((index, leaf, check))
                    del leaf
                    while len(ahead) > (_AHEAD if self._streams <= _FEW else 0):
                        yield await verified()
            while ahead:
                yield await verified()
        finally:
            for _, _, check in ahead:
                check.cancel()

    async def _stored_leaves(
        self, version: Version, table: LeafTable, indices: range
    ) -> AsyncGenerator[tuple[int, memoryview]]:
        """Yield leaves as stored, not verified.

        Where an answer ends early, the rest is asked for once more. What breaks off
        with an error is the adapter's to go on with.
        """
        last = table.span(indices[-1])[1]
        short = False
        while True:
            first = table.span(indices[0])[0]
            pieces = self._store.stream(version.object_key, first, last)
            try:
                async with (
                    aclosing(pieces),
                    aclosing(_cut(pieces, table.chunk_size)) as leaves,
                ):
                    async for leaf in leaves:
                        yield indices[0], leaf
                        del leaf
                        indices = indices[1:]
                        if not indices:
                            return
            except InvalidRangeError:
                _log.debug("object.shorter_than_asked", key=version.object_key)
            problem = _shorter(version, table.span(indices[0])[0])
            self._report("object.short", version, version.object_key, problem)
            if short:
                await self._in_thread(
                    self._mark, version.object_key, version.cid, problem
                )
                raise problem
            short = True

    # -------------------------------------------------------------- what was wrong

    def _report(
        self,
        event: str,
        version: Version,
        key: str,
        error: IntegrityError,
        **more: object,
    ) -> None:
        self._watcher.tell(Event.LEAF_WRONG)
        _log.warning(
            event,
            cid=str(version.cid),
            key=key,
            code=error.code,
            reason=error.message,
            **more,
        )

    def _mark(self, key: str, cid: CID, error: IntegrityError) -> None:
        self._watcher.tell(Event.OBJECT_WRONG)
        _log.error(
            "object.wrong", key=key, cid=str(cid), code=error.code, reason=error.message
        )
        if self._marks is not None:
            self._marks.mark(key, cid, error.code)


def _shorter(version: Version, found: int) -> LengthMismatchError:
    return LengthMismatchError(
        f"The object {version.object_key} ended early.",
        expected=version.file_size,
        actual=found,
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
