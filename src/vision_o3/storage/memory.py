"""A store in memory, for tests: gone with the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import obstore
from obstore.store import MemoryStore as ObstoreMemory

from vision_o3.errors import StorageError
from vision_o3.storage.base import PutIfAbsent, StoreCapabilities
from vision_o3.storage.obstore_adapter import (
    STREAM_PIECE,
    ObstoreAdapter,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


class MemoryStore(ObstoreAdapter):
    """Objects in this process's memory."""

    capabilities = StoreCapabilities(PutIfAbsent.ATOMIC, presign=False)

    def __init__(self) -> None:
        super().__init__(ObstoreMemory())

    def put(self, key: str, content: bytes) -> None:
        """Store a small object; see ``ObjectStore.put``."""
        self._check(key)
        with translated(key):
            obstore.put(self._backend, key, content, mode="create", use_multipart=False)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's bytes; see ``ObjectStore.put_file``."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError("The file to store cannot be read.") from error
        self.put(key, content)

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield the bytes ``[start, end)``; see ``ObjectStore.stream``."""
        self._size_for(key, start, end)
        for at in range(start, end, STREAM_PIECE):
            yield self.get_range(key, at, min(at + STREAM_PIECE, end))
