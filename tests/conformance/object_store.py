"""What every object store must do. An adapter's file gives a fixture and no more."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vision_o3.errors import (
    AlreadyExistsError,
    InvalidRangeError,
    LimitExceededError,
    NotFoundError,
    ObjectNotFoundError,
)
from vision_o3.storage.base import ObjectStore, PutIfAbsent

MIB = 1 << 20
KEY = "models/yolo/v1.onnx"
CONTENT = bytes(range(256)) * 16


async def gather(store: ObjectStore, key: str, start: int, end: int) -> bytes:
    received = bytearray()
    async for piece in store.stream(key, start, end):
        assert 1 <= len(piece) <= 8 * MIB
        received += piece
    return bytes(received)


def put_file(store: ObjectStore, directory: Path, key: str, content: bytes) -> None:
    path = directory / "upload"
    path.write_bytes(content)
    try:
        store.put_file(key, path)
    finally:
        path.unlink()


class ObjectStoreConformance:
    """Subclass it with a fixture ``store``: empty, and left empty."""

    put_if_absent: ClassVar[PutIfAbsent] = PutIfAbsent.ATOMIC
    presigns: ClassVar[bool] = False

    @pytest.fixture(autouse=True)
    def _leaves_it_empty(self, store: ObjectStore) -> Any:
        assert list(store.list()) == []
        yield
        for found in list(store.list()):
            store.delete(found.key)
        assert list(store.list()) == []
        store.close()
        store.close()

    def test_capabilities_are_those_declared(self, store: ObjectStore) -> None:
        assert store.capabilities.put_if_absent is self.put_if_absent
        assert store.capabilities.presign is self.presigns

    @pytest.mark.parametrize(
        "content", [b"", b"x", b"\xff\xfe\x00\x80", CONTENT], ids=len
    )
    def test_put_then_get(self, store: ObjectStore, content: bytes) -> None:
        store.put(KEY, content)
        assert store.get(KEY, max_size=len(content)) == content
        found = store.find(KEY)
        assert found is not None
        assert (found.key, found.size) == (KEY, len(content))

    @pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 9 * MIB + 3])
    def test_put_file_then_read(
        self, store: ObjectStore, tmp_path: Path, size: int
    ) -> None:
        content = random.Random(size).randbytes(size)
        put_file(store, tmp_path, KEY, content)
        assert store.get(KEY, max_size=size) == content
        assert asyncio.run(gather(store, KEY, 0, size)) == content

    def test_time_of_writing_is_aware_utc(self, store: ObjectStore) -> None:
        store.put(KEY, CONTENT)
        found = store.find(KEY)
        assert found is not None
        assert found.modified_at.utcoffset() == timedelta(0)
        assert abs(found.modified_at - datetime.now(UTC)) < timedelta(minutes=5)

    def test_put_never_replaces(self, store: ObjectStore, tmp_path: Path) -> None:
        store.put(KEY, b"first")
        with pytest.raises(AlreadyExistsError):
            store.put(KEY, b"second")
        with pytest.raises(AlreadyExistsError):
            put_file(store, tmp_path, KEY, b"third")
        assert store.get(KEY, max_size=10) == b"first"

    def test_put_file_is_not_replaced_either(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        put_file(store, tmp_path, KEY, b"first")
        with pytest.raises(AlreadyExistsError):
            put_file(store, tmp_path, KEY, b"second")
        with pytest.raises(AlreadyExistsError):
            store.put(KEY, b"third")
        assert store.get(KEY, max_size=10) == b"first"

    def test_one_of_many_writers_wins(self, store: ObjectStore, tmp_path: Path) -> None:
        def write(number: int) -> bool:
            path = tmp_path / f"upload-{number}"
            path.write_bytes(b"%d" % number * 1000)
            try:
                store.put_file(KEY, path)
            except AlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(write, range(16)))
        assert won.count(True) == 1
        assert store.get(KEY, max_size=9999) == b"%d" % won.index(True) * 1000

    def test_deleted_key_can_be_used_again(self, store: ObjectStore) -> None:
        store.put(KEY, b"first")
        store.delete(KEY)
        assert store.find(KEY) is None
        store.put(KEY, b"second")
        assert store.get(KEY, max_size=10) == b"second"

    def test_delete_of_an_absent_key_is_no_error(self, store: ObjectStore) -> None:
        store.delete(KEY)
        store.delete("models/none/v9.pt")

    def test_delete_leaves_siblings_alone(self, store: ObjectStore) -> None:
        keys = ["models/a/v1.pt", "models/a/v10.pt", "models/ab/v1.pt"]
        for key in keys:
            store.put(key, key.encode())
        store.delete(keys[0])
        assert sorted(found.key for found in store.list()) == keys[1:]

    def test_absent_key_is_said_so(self, store: ObjectStore) -> None:
        assert store.find(KEY) is None
        reads: list[Callable[[], object]] = [
            lambda: store.get(KEY, max_size=10),
            lambda: store.get_range(KEY, 0, 0),
            lambda: store.get_range(KEY, 0, 1),
            lambda: asyncio.run(gather(store, KEY, 0, 1)),
        ]
        for read in reads:
            with pytest.raises(ObjectNotFoundError) as caught:
                read()
            assert isinstance(caught.value, NotFoundError)

    def test_folder_is_not_an_object(self, store: ObjectStore) -> None:
        store.put(KEY, CONTENT)
        assert store.find("models/yolo") is None
        with pytest.raises(ObjectNotFoundError):
            store.get("models/yolo", max_size=10)

    def test_get_is_bounded(self, store: ObjectStore) -> None:
        store.put(KEY, b"12345")
        with pytest.raises(LimitExceededError):
            store.get(KEY, max_size=4)

    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, 0), (0, 1), (1, 4096), (4095, 4096), (4096, 4096), (7, 9)],
    )
    def test_ranges_are_exact(self, store: ObjectStore, start: int, end: int) -> None:
        store.put(KEY, CONTENT)
        assert store.get_range(KEY, start, end) == CONTENT[start:end]
        assert asyncio.run(gather(store, KEY, start, end)) == CONTENT[start:end]

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 4097), (4097, 4097), (5, 4), (-1, 3), (9999, 99999)]
    )
    def test_ranges_outside_are_refused(
        self, store: ObjectStore, start: int, end: int
    ) -> None:
        store.put(KEY, CONTENT)
        with pytest.raises(InvalidRangeError) as caught:
            store.get_range(KEY, start, end)
        assert caught.value.values["size"] == len(CONTENT)
        with pytest.raises(InvalidRangeError):
            asyncio.run(gather(store, KEY, start, end))

    def test_list_matches_text_not_folders(self, store: ObjectStore) -> None:
        keys = {
            "models/a/v1.pt",
            "models/a/v1.dag.car",
            "models/a/v10.pt",
            "models/ab/v1.pt",
            "datasets/a/v1.zip",
        }
        for key in keys:
            store.put(key, key.encode())
        for prefix in ("", "models/", "models/a", "models/a/v1.", "models/a/v1", "z"):
            found = {meta.key: meta.size for meta in store.list(prefix)}
            assert found == {k: len(k) for k in keys if k.startswith(prefix)}

    def test_list_is_not_cut_at_a_page(self, store: ObjectStore) -> None:
        keys = {f"models/m/v{number}.pt" for number in range(1, 1_051)}
        for key in keys:
            store.put(key, b"")
        assert {found.key for found in store.list("models/m/")} == keys

    def test_stream_can_be_left_early(self, store: ObjectStore, tmp_path: Path) -> None:
        put_file(store, tmp_path, KEY, bytes(20 * MIB))

        async def leave() -> int:
            async with aclosing(store.stream(KEY, 0, 20 * MIB)) as pieces:  # type: ignore[type-var] # a generator in all adapters
                async for piece in pieces:
                    return len(piece)
            return 0

        assert asyncio.run(leave()) > 0

    def test_streams_run_side_by_side(self, store: ObjectStore, tmp_path: Path) -> None:
        content = random.Random(1).randbytes(3 * MIB + 7)
        put_file(store, tmp_path, KEY, content)

        async def read_all() -> list[bytes]:
            readers = (gather(store, KEY, i, len(content) - i) for i in range(8))
            return await asyncio.gather(*readers)

        for offset, received in enumerate(asyncio.run(read_all())):
            assert received == content[offset : len(content) - offset]

    def test_presigned_url_only_where_declared(self, store: ObjectStore) -> None:
        store.put(KEY, CONTENT)
        url = store.presign_get(KEY, ttl_s=60)
        assert (url is not None) is self.presigns
