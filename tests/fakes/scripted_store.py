"""A store that fails by a script, one letter for each call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime
from pathlib import Path

from vision_o3.errors import TransientStorageError
from vision_o3.storage.base import ObjectMeta, ObjectStore, StoreCapabilities


class ScriptedStore:
    """Wraps a store. ``O`` ok, ``T`` transient error before anything is done, ``C``
    corrupt bytes, ``S`` short (the last byte is missing; a stream ends after its first
    piece, short of a byte), ``X`` done but the answer is lost. After the script all is
    ``O``. ``C`` and ``S`` make a difference to reads only. ``calls`` has their names.
    """

    def __init__(self, script: str, inner: ObjectStore) -> None:
        self.calls: list[str] = []
        self._script = iter(script)
        self._inner = inner

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._inner.capabilities

    def put(self, key: str, content: bytes) -> None:
        with self._step("put"):
            self._inner.put(key, content)

    def put_file(self, key: str, path: Path) -> None:
        with self._step("put_file"):
            self._inner.put_file(key, path)

    def get(self, key: str, *, max_size: int) -> bytes:
        with self._step("get") as letter:
            return _damaged(letter, self._inner.get(key, max_size=max_size))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._step("get_range") as letter:
            return _damaged(letter, self._inner.get_range(key, start, end))

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        with self._step("stream") as letter:
            damage = letter
            async with aclosing(self._inner.stream(key, start, end)) as pieces:
                async for piece in pieces:
                    yield _damaged(damage, bytes(piece))
                    if damage == "S":
                        return
                    damage = "O"

    def open_file(self, key: str) -> int | None:
        del key
        return None  # so that all is read by the calls that can fail

    def find(self, key: str) -> ObjectMeta | None:
        with self._step("find"):
            return self._inner.find(key)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        with self._step("list"):
            return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        with self._step("delete"):
            self._inner.delete(key)

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:
        return self._inner.presign_get(key, ttl_s=ttl_s)

    def presign_put(self, key: str, *, ttl_s: int) -> str | None:
        return self._inner.presign_put(key, ttl_s=ttl_s)

    def remove_unfinished(self, prefix: str, *, before: datetime) -> int:
        with self._step("remove_unfinished"):
            return self._inner.remove_unfinished(prefix, before=before)

    def close(self) -> None:
        self._inner.close()

    @contextmanager
    def _step(self, call: str) -> Iterator[str]:
        self.calls.append(call)
        letter = next(self._script, "O")
        if letter == "T":
            raise TransientStorageError("The store is busy.")
        yield letter
        if letter == "X":
            raise TransientStorageError("The answer was lost.")


def _damaged(letter: str, content: bytes) -> bytes:
    if letter == "C" and content:
        return bytes([content[0] ^ 1]) + content[1:]
    return content[:-1] if letter == "S" else content
