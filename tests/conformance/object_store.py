"""What every object store must do.

An adapter's test file gives a fixture and the capabilities that it declares. A known
gap is one overridden test with ``@pytest.mark.xfail(strict=True, reason=…)``.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import urllib.request
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import uvloop

from vision_o3.errors import (
    AlreadyExistsError,
    InvalidRangeError,
    LimitExceededError,
    NotFoundError,
    ObjectNotFoundError,
    StorageError,
)
from vision_o3.storage.base import ObjectStore, PutIfAbsent

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MIB = 1 << 20
KEY = "models/yolo/v1.onnx"
CONTENT = bytes(range(256)) * 16
NOT_KEYS = (
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", ".a",
    "a/.b", "A", "a b", "a\0b", "a\nb", "a\n", "é", "a\\b", "a%2fb", "a:b", "~", "-a",
    "a/" * 512 + "ab", "a" * 256,
)  # fmt: skip


async def gather(store: ObjectStore, key: str, start: int, end: int) -> bytes:
    received = bytearray()
    async for piece in store.stream(key, start, end):
        assert 1 <= len(piece) <= 8 * MIB
        received += piece
    return bytes(received)


def open_file_count() -> int:
    """Files that this process has open, where the system tells."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def assert_leaves_no_file_open(work: Callable[[], object]) -> None:
    """Do it twice: what the first time opens for good, as connections, is no leak."""
    work()
    open_files = open_file_count()
    for _ in range(5):
        work()
    # What another thread closes takes a moment.
    deadline = time.monotonic() + 60
    while open_file_count() > open_files and time.monotonic() < deadline:
        time.sleep(0.01)
    assert open_file_count() <= open_files


def exchange(method: str, url: str, body: bytes | None = None, **headers: str) -> bytes:
    """Send one HTTP request as anybody could, and return the answer's body."""
    request = urllib.request.Request(url, body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


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
    more_than_a_page: ClassVar[int] = 1_050
    """More objects than the store lists in one answer."""

    @pytest.fixture(autouse=True)
    def _leaves_it_empty(self, store: ObjectStore) -> Any:
        assert list(store.list()) == []
        yield
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda found: store.delete(found.key), store.list()))
        assert list(store.list()) == []
        store.close()
        store.close()

    @pytest.fixture(params=["asyncio", "uvloop"])
    def run(self, request: pytest.FixtureRequest) -> Run:
        """Runs a coroutine to its end on either event loop."""

        def run(work: Coroutine[Any, Any, Any]) -> Any:
            loop_factory = uvloop.new_event_loop if request.param == "uvloop" else None
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(work)

        return run

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

    @pytest.mark.parametrize(
        "size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB - 1, 5 * MIB, 9 * MIB + 3]
    )
    def test_put_file_then_read(
        self, store: ObjectStore, tmp_path: Path, run: Run, size: int
    ) -> None:
        content = random.Random(size).randbytes(size)
        put_file(store, tmp_path, KEY, content)
        assert store.get(KEY, max_size=size) == content
        assert run(gather(store, KEY, 0, size)) == content

    def test_put_of_an_absent_file_stores_nothing(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        with pytest.raises(StorageError):
            store.put_file(KEY, tmp_path / "absent")
        assert store.find(KEY) is None

    @pytest.mark.parametrize("key", NOT_KEYS)
    def test_what_is_not_a_key_is_refused(
        self, store: ObjectStore, tmp_path: Path, key: str
    ) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, CONTENT),
            lambda: put_file(store, tmp_path, key, CONTENT),
            lambda: store.get(key, max_size=9999),
            lambda: store.get_range(key, 0, 0),
            lambda: asyncio.run(gather(store, key, 0, 0)),
            lambda: store.find(key),
            lambda: store.delete(key),
        ]
        if self.presigns:
            calls += [
                lambda: store.presign_get(key, ttl_s=60),
                lambda: store.presign_put(key, ttl_s=60),
            ]
        for call in calls:
            with pytest.raises(StorageError):
                call()

    def test_key_and_folder_of_one_name_hurt_nobody(self, store: ObjectStore) -> None:
        for first, second in (("a", "a/b"), ("c/d", "c")):
            store.put(first, b"first")
            with suppress(StorageError, AlreadyExistsError):
                store.put(second, b"second")
            assert store.get(first, max_size=10) == b"first"

    def test_time_of_writing_is_the_stores_aware_utc(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        """Also of a file that is older."""
        store.put(KEY, CONTENT)
        path = tmp_path / "old"
        path.write_bytes(CONTENT)
        os.utime(path, (0, 0))
        store.put_file("models/yolo/v2.onnx", path)
        for key in (KEY, "models/yolo/v2.onnx"):
            found = store.find(key)
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
        if self.put_if_absent is not PutIfAbsent.ATOMIC:
            pytest.skip("This store is safe only under the caller's lease.")

        def write(number: int) -> bool:
            content = b"%d" % number * 1000
            path = tmp_path / f"upload-{number}"
            path.write_bytes(content)
            try:
                if number % 2:
                    store.put(KEY, content)
                else:
                    store.put_file(KEY, path)
            except AlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(write, range(16)))
        assert won.count(True) == 1
        assert store.get(KEY, max_size=9999) == b"%d" % won.index(True) * 1000

    def test_threads_do_not_disturb_each_other(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        def work(number: int) -> None:
            key, content = f"models/m/v{number}.pt", b"%d" % number * 1000
            directory = tmp_path / str(number)
            directory.mkdir()
            for _ in range(5):
                put_file(store, directory, key, content)
                assert store.get(key, max_size=len(content)) == content
                assert [found.key for found in store.list(key)] == [key]
                store.delete(key)
                assert store.find(key) is None

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(11, 27)))

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
        [(0, 0), (0, 1), (0, 4096), (1, 4096), (4095, 4096), (4096, 4096), (7, 9)],
    )
    def test_ranges_are_exact(
        self, store: ObjectStore, run: Run, start: int, end: int
    ) -> None:
        store.put(KEY, CONTENT)
        assert store.get_range(KEY, start, end) == CONTENT[start:end]
        assert run(gather(store, KEY, start, end)) == CONTENT[start:end]

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, MIB), (1, MIB + 1), (MIB - 1, MIB + 1), (MIB, 2 * MIB),
            (2 * MIB - 3, 3 * MIB + 5), (3 * MIB + 4, 3 * MIB + 5),
        ],
    )  # fmt: skip
    def test_ranges_cross_pieces(
        self, store: ObjectStore, tmp_path: Path, run: Run, start: int, end: int
    ) -> None:
        content = random.Random(2).randbytes(3 * MIB + 5)
        put_file(store, tmp_path, KEY, content)
        assert store.get_range(KEY, start, end) == content[start:end]
        assert run(gather(store, KEY, start, end)) == content[start:end]

    def test_empty_object_has_one_range(self, store: ObjectStore, run: Run) -> None:
        store.put(KEY, b"")
        assert store.get_range(KEY, 0, 0) == b""
        assert run(gather(store, KEY, 0, 0)) == b""
        with pytest.raises(InvalidRangeError):
            store.get_range(KEY, 0, 1)

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
        prefixes = ["", "m", "models", "models/", "models/a", "models/a/"]
        prefixes += ["models/a/v1", "models/a/v1.", "models/a/v1.pt", "models/a/v1.pt/"]
        for prefix in (*prefixes, "z", "models/z/", *NOT_KEYS):
            found = {meta.key: meta.size for meta in store.list(prefix)}
            assert found == {k: len(k) for k in keys if k.startswith(prefix)}

    def test_list_is_not_cut_at_a_page(self, store: ObjectStore) -> None:
        count = self.more_than_a_page
        keys = {f"models/m/v{number}.pt" for number in range(1, count + 1)}
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        listed = [found.key for found in store.list("models/m/")]
        assert len(listed) == count
        assert set(listed) == keys

    def test_listing_goes_on_while_objects_are_deleted(
        self, store: ObjectStore
    ) -> None:
        keys = {f"models/m{number}/v1.pt" for number in range(60)}
        for key in keys:
            store.put(key, b"")
        for found in store.list():
            store.delete(found.key)
            keys.remove(found.key)
        assert not keys

    def test_listing_tells_what_find_tells(self, store: ObjectStore) -> None:
        store.put(KEY, CONTENT)
        assert list(store.list()) == [store.find(KEY)]

    def test_stream_can_be_left_early(
        self, store: ObjectStore, tmp_path: Path, run: Run
    ) -> None:
        put_file(store, tmp_path, KEY, bytes(20 * MIB))

        async def leave() -> int:
            unused = store.stream(KEY, 0, 20 * MIB)
            await unused.aclose()
            async with aclosing(store.stream(KEY, 0, 20 * MIB)) as pieces:
                async for piece in pieces:
                    return len(piece)
            return 0

        def leave_early() -> None:
            assert run(leave()) > 0

        assert_leaves_no_file_open(leave_early)

    def test_stream_can_be_cancelled(
        self, store: ObjectStore, tmp_path: Path, run: Run
    ) -> None:
        put_file(store, tmp_path, KEY, bytes(20 * MIB))

        async def cancel(turns: int) -> None:
            reading = asyncio.create_task(gather(store, KEY, 0, 20 * MIB))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

        def cancel_anywhere() -> None:
            for turns in range(12):
                run(cancel(turns))

        assert_leaves_no_file_open(cancel_anywhere)

    def test_pieces_may_be_kept(
        self, store: ObjectStore, tmp_path: Path, run: Run
    ) -> None:
        content = random.Random(3).randbytes(5 * MIB)
        put_file(store, tmp_path, KEY, content)

        async def keep() -> list[bytes | memoryview]:
            return [piece async for piece in store.stream(KEY, 0, len(content))]

        assert b"".join(run(keep())) == content

    def test_streams_run_side_by_side(
        self, store: ObjectStore, tmp_path: Path, run: Run
    ) -> None:
        content = random.Random(1).randbytes(3 * MIB + 7)
        put_file(store, tmp_path, KEY, content)

        async def read_all() -> list[bytes]:
            readers = (gather(store, KEY, i, len(content) - i) for i in range(8))
            return await asyncio.gather(*readers)

        for offset, received in enumerate(run(read_all())):
            assert received == content[offset : len(content) - offset]

    def test_presigned_url_only_where_declared(self, store: ObjectStore) -> None:
        store.put(KEY, CONTENT)
        assert (store.presign_get(KEY, ttl_s=60) is not None) is self.presigns
        other = "models/yolo/v2.onnx"
        assert (store.presign_put(other, ttl_s=60) is not None) is self.presigns

    def test_presigned_url_serves_the_object(self, store: ObjectStore) -> None:
        if not self.presigns:
            pytest.skip("This store signs no URLs.")
        store.put(KEY, CONTENT)
        url = store.presign_get(KEY, ttl_s=60) or ""
        assert exchange("GET", url) == CONTENT
        assert exchange("GET", url, Range="bytes=3-7") == CONTENT[3:8]

    def test_presigned_url_takes_an_object(self, store: ObjectStore) -> None:
        if not self.presigns:
            pytest.skip("This store signs no URLs.")
        url = store.presign_put(KEY, ttl_s=60) or ""
        exchange("PUT", url, CONTENT, **{"Content-Type": "application/octet-stream"})
        assert store.get(KEY, max_size=len(CONTENT)) == CONTENT

    def test_removing_the_unfinished_leaves_objects_alone(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        store.put(KEY, CONTENT)
        put_file(store, tmp_path, "models/yolo/v2.onnx", bytes(6 * MIB))
        for prefix in ("", "models/", "models/yolo/v", "no/such", "No key"):
            later = datetime.now(UTC) + timedelta(days=1)
            assert store.remove_unfinished(prefix, before=later) == 0
        assert store.get(KEY, max_size=len(CONTENT)) == CONTENT
        found = store.find("models/yolo/v2.onnx")
        assert found is not None
        assert found.size == 6 * MIB
