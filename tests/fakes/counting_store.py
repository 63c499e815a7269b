"""A store that counts what is read from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from vision_o3.storage.local import LocalStore


class CountingStore(LocalStore):
    """``bytes_read`` by key; ``requests`` by key, of those that read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bytes_read: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()

    def get(self, key: str, *, max_size: int) -> bytes:
        content = super().get(key, max_size=max_size)
        self._count(key, len(content))
        return content

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self._count(key, end - start)
        return super().get_range(key, start, end)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        self._count(key, end - start)
        async with aclosing(super().stream(key, start, end)) as pieces:
            async for piece in pieces:
                yield piece

    def open_file(self, key: str) -> int | None:  # type: ignore[override]
        del key
        return None  # so that all is read by the calls that are counted

    def _count(self, key: str, size: int) -> None:
        self.bytes_read[key] += size
        self.requests[key] += 1
