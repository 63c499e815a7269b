"""An object store whose operations are counted, timed and traced."""

from __future__ import annotations

import time
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from vision_o3.gateway.metrics import OK, code_of
from vision_o3.storage.base import KeepsHistory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from datetime import datetime
    from pathlib import Path

    from vision_o3.gateway.metrics import Metrics
    from vision_o3.gateway.tracing import Tracing
    from vision_o3.storage.base import ObjectMeta, ObjectStore, StoreCapabilities


class _Operation:
    """One that is under way."""

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self.began_after_s: float | None = None
        self._started = time.perf_counter()

    def began(self) -> None:
        """Note that the first of what it yields has come."""
        if self.began_after_s is None:
            self.began_after_s = self.elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since it started."""
        return time.perf_counter() - self._started


class MeasuredStore:
    """Passes everything on to a store, and takes note of it.

    Args:
        store: Closed with this.
        tracing: Where each operation becomes a span, if anywhere.
    """

    def __init__(
        self, store: ObjectStore, metrics: Metrics, tracing: Tracing | None = None
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._tracing = tracing

    @property
    def capabilities(self) -> StoreCapabilities:
        """See ``ObjectStore``; so for all methods."""
        return self._store.capabilities

    def put(self, key: str, content: bytes) -> None:
        """Store a small object."""
        with self._operation("put") as operation:
            self._store.put(key, content)
            operation.written = len(content)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's bytes."""
        with self._operation("put_file") as operation:
            self._store.put_file(key, path)
            operation.written = path.stat().st_size

    def get(self, key: str, *, max_size: int) -> bytes:
        """Return a whole object."""
        with self._operation("get") as operation:
            content = self._store.get(key, max_size=max_size)
            operation.read = len(content)
        return content

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return some bytes."""
        with self._operation("get_range") as operation:
            content = self._store.get_range(key, start, end)
            operation.read = len(content)
        return content

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield some bytes."""
        with self._operation("stream") as operation:
            async with aclosing(self._store.stream(key, start, end)) as pieces:
                async for piece in pieces:
                    operation.began()
                    operation.read += len(piece)
                    yield piece

    def open_file(self, key: str) -> int | None:
        """Return a descriptor of the object's file, if there is one."""
        with self._operation("open_file"):
            return self._store.open_file(key)

    def find(self, key: str) -> ObjectMeta | None:
        """Return what the store knows of an object."""
        with self._operation("find"):
            return self._store.find(key)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield every object whose key starts with a prefix."""
        with self._operation("list") as operation:
            for found in self._store.list(prefix):
                operation.began()
                yield found

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._operation("delete"):
            self._store.delete(key)

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL that serves the object. Asks the store for nothing."""
        return self._store.presign_get(key, ttl_s=ttl_s)

    def presign_put(self, key: str, *, ttl_s: int) -> str | None:
        """Return a URL that takes the object. Asks the store for nothing."""
        return self._store.presign_put(key, ttl_s=ttl_s)

    def remove_unfinished(self, prefix: str, *, before: datetime) -> int:
        """Remove what dead writers left."""
        with self._operation("remove_unfinished"):
            return self._store.remove_unfinished(prefix, before=before)

    def close(self) -> None:
        """Free connections."""
        self._store.close()

    @contextmanager
    def _operation(self, name: str) -> Iterator[_Operation]:
        operation = _Operation()
        outcome = OK
        span = None if self._tracing is None else self._tracing.begin(f"store.{name}")
        try:
            yield operation
        except GeneratorExit:  # who reads a stream has enough of it
            raise
        except BaseException as error:
            outcome = code_of(error)
            raise
        finally:
            began_after_s = operation.began_after_s
            self._metrics.operated(
                name,
                operation.elapsed_s if began_after_s is None else began_after_s,
                outcome=outcome,
                read=operation.read,
                written=operation.written,
            )
            if span is not None:
                moved = operation.read or operation.written
                span.end(outcome=outcome, size=moved or None)


class _MeasuredHistory(MeasuredStore):
    """The same, of a store that keeps history."""

    def __init__(
        self,
        store: ObjectStore,
        keeper: KeepsHistory,
        metrics: Metrics,
        tracing: Tracing | None,
    ) -> None:
        super().__init__(store, metrics, tracing)
        self._keeper = keeper

    def erase_history(self, prefix: str) -> int:
        """Delete for good what objects were before; see ``KeepsHistory``."""
        with self._operation("erase_history"):
            return self._keeper.erase_history(prefix)


def measured(
    store: ObjectStore, metrics: Metrics, tracing: Tracing | None = None
) -> ObjectStore:
    """Return a store that passes everything on, of the same capabilities."""
    if isinstance(store, KeepsHistory):
        return _MeasuredHistory(store, store, metrics, tracing)
    return MeasuredStore(store, metrics, tracing)
