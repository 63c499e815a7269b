from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.versions import version_of
from vision_o3.content.cid import CID
from vision_o3.content.dag import ContentHasher, Dag
from vision_o3.errors import (
    DigestMismatchError,
    IntegrityError,
    StorageError,
    TransientStorageError,
)
from vision_o3.registry import hot_cache, relaying
from vision_o3.registry.hot_cache import BLOCK, HotCache
from vision_o3.registry.relaying import Relay
from vision_o3.registry.values import Version
from vision_o3.storage.memory import MemoryStore

MIB = 1 << 20
KEY = "models/m/v1.tflite"


class RemoteStore(ScriptedStore):
    """A store whose objects lie elsewhere; counts what is streamed from it."""

    def __init__(self, script: str = "") -> None:
        self.memory = MemoryStore()
        super().__init__(script, self.memory)
        self.streamed: Counter[str] = Counter()
        self.gate: asyncio.Event | None = None

    async def stream(
        self, key: str, start: int, end: int
    ) -> AsyncGenerator[bytes | memoryview]:
        if self.gate is not None:
            await self.gate.wait()
        async with aclosing(super().stream(key, start, end)) as pieces:
            async for piece in pieces:
                self.streamed[key] += len(piece)
                yield piece


@dataclass
class Marks:
    marked: list[tuple[str, CID, str]] = field(default_factory=list)

    def mark(self, key: str, cid: CID, reason: str) -> None:
        self.marked.append((key, cid, reason))


class Setting:
    """A version in a remote store, and relays to it that share a cache's folder."""

    def __init__(self, folder: Path, size: int, script: str = "") -> None:
        self.folder = folder
        self.content = random.Random(size).randbytes(size)
        self.store = RemoteStore()
        hasher = ContentHasher()
        hasher.update(self.content)
        self.dag: Dag = hasher.finish()
        self.version: Version = version_of(self.dag, KEY)
        self.store.memory.put(KEY, self.content)
        sidecar = self.dag.sidecar()
        if sidecar is not None and self.version.sidecar_key is not None:
            self.store.memory.put(self.version.sidecar_key, sidecar)
        self.marks = Marks()
        self.script(script)

    def script(self, letters: str) -> None:
        self.store._script = iter(letters)

    def relay(self, capacity: int = 1 << 30) -> Relay:
        cache = HotCache(self.folder, capacity=capacity)
        relay = Relay(self.store, cache=cache, marks=self.marks)
        relay.table(self.version)
        return relay

    async def read(self, relay: Relay, start: int, end: int) -> bytes:
        async with aclosing(relay.stream(self.version, start, end)) as pieces:
            return b"".join([bytes(piece) async for piece in pieces])

    def blocks(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


Make = Callable[..., Setting]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(size: int, script: str = "") -> Setting:
        return Setting(tmp_path / "cache", size, script)

    return make


@pytest.mark.parametrize("size", [0, 1, MIB, BLOCK, BLOCK + 1, 2 * BLOCK + 12345])
@pytest.mark.parametrize("many", [False, True])
def test_what_was_read_once_is_read_from_the_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch, size: int, many: bool
) -> None:
    if many:
        monkeypatch.setattr(relaying, "_FEW", 0)
    setting = make(size)
    for _ in range(3):
        relay = setting.relay()
        assert asyncio.run(setting.read(relay, 0, size)) == setting.content
        relay.close()
    assert setting.store.streamed[KEY] == size
    assert sum(path.stat().st_size for path in setting.blocks()) == size


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_range_is_right_whatever_is_cached(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = 2 * BLOCK + 3 * MIB + 17
    setting = Setting(tmp_path_factory.mktemp("cache"), size)
    relay = setting.relay()
    edges = st.one_of(
        st.integers(0, size),
        st.sampled_from([0, 1, MIB, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, size]),
    )
    for _ in range(4):
        start, end = sorted((data.draw(edges), data.draw(edges)))
        found = asyncio.run(setting.read(relay, start, end))
        assert found == setting.content[start:end]
    relay.close()


def test_all_who_ask_at_once_cost_one_read(make: Make) -> None:
    setting = make(3 * BLOCK)
    relay = setting.relay()

    async def read_all() -> list[bytes]:
        setting.store.gate = asyncio.Event()
        readers = [
            asyncio.create_task(setting.read(relay, 0, 3 * BLOCK)) for _ in range(20)
        ]
        await asyncio.sleep(0.05)
        setting.store.gate.set()
        return await asyncio.gather(*readers)

    assert all(found == setting.content for found in asyncio.run(read_all()))
    assert setting.store.streamed[KEY] == 3 * BLOCK


def test_readers_get_leaves_before_the_block_is_whole(make: Make) -> None:
    setting = make(BLOCK)
    relay = setting.relay()

    async def read_one() -> None:
        stream = setting.store.memory.stream

        async def half(
            key: str, start: int, end: int
        ) -> AsyncGenerator[bytes | memoryview]:
            count = 0
            async for piece in stream(key, start, end):
                yield piece
                count += 1
                if count == 2:
                    await asyncio.Event().wait()  # for ever

        setting.store.memory.stream = half  # type: ignore[method-assign]
        async with aclosing(relay.stream(setting.version, 0, BLOCK)) as pieces:
            async for piece in pieces:
                assert bytes(piece) == setting.content[:MIB]
                break

    asyncio.run(read_one())
    assert setting.blocks() == []  # what was not whole is gone


def test_other_processes_wait_for_the_one_that_reads(make: Make) -> None:
    """Two caches on one folder, as two processes have them."""
    setting = make(2 * BLOCK + 5)
    relays = [setting.relay() for _ in range(4)]

    async def read_all() -> list[bytes]:
        return await asyncio.gather(
            *(setting.read(relay, 0, 2 * BLOCK + 5) for relay in relays)
        )

    assert all(found == setting.content for found in asyncio.run(read_all()))
    assert setting.store.streamed[KEY] == 2 * BLOCK + 5


def test_lock_of_a_killed_process_is_no_lock(make: Make) -> None:
    setting = make(MIB + 5)
    folder = setting.folder / str(setting.version.cid)
    folder.mkdir(parents=True)
    (folder / "0.part").write_bytes(b"killed while this was written")
    relay = setting.relay()
    assert asyncio.run(setting.read(relay, 0, MIB + 5)) == setting.content
    assert [path.name for path in setting.blocks()] == ["0"]


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty"])
@pytest.mark.parametrize("many", [False, True])
def test_damage_on_this_disk_costs_one_read(
    make: Make, monkeypatch: pytest.MonkeyPatch, damage: str, many: bool
) -> None:
    if many:
        monkeypatch.setattr(relaying, "_FEW", 0)
    setting = make(BLOCK + 3)
    relay = setting.relay()
    asyncio.run(setting.read(relay, 0, BLOCK + 3))
    path = setting.folder / str(setting.version.cid) / "0"
    content = bytearray(path.read_bytes())
    content[5 * MIB] ^= 1
    changed = {"flip": content, "cut": content[:-1], "longer": content + b"x"}
    path.write_bytes(changed.get(damage, b""))
    assert asyncio.run(setting.read(relay, 0, BLOCK + 3)) == setting.content
    assert setting.marks.marked == []
    assert asyncio.run(setting.read(relay, 0, BLOCK + 3)) == setting.content
    assert setting.store.streamed[KEY] <= 3 * BLOCK + 3


@pytest.mark.parametrize("many", [False, True])
def test_damage_that_many_meet_costs_one_read(
    make: Make, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    if many:
        monkeypatch.setattr(relaying, "_FEW", 0)
    setting = make(BLOCK)
    relay = setting.relay()
    asyncio.run(setting.read(relay, 0, BLOCK))
    path = setting.folder / str(setting.version.cid) / "0"
    content = bytearray(path.read_bytes())
    content[5 * MIB] ^= 1
    path.write_bytes(content)

    async def read_all() -> list[bytes]:
        return await asyncio.gather(*(setting.read(relay, 0, BLOCK) for _ in range(30)))

    assert all(found == setting.content for found in asyncio.run(read_all()))
    assert setting.store.streamed[KEY] == 2 * BLOCK


def test_what_changes_after_it_was_verified_is_not_handed_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many streams, each reads a leaf again as it goes out."""
    monkeypatch.setattr(relaying, "_FEW", 0)
    setting = make(MIB)
    relay = setting.relay()
    asyncio.run(setting.read(relay, 0, MIB))
    path = setting.folder / str(setting.version.cid) / "0"

    async def change_meanwhile() -> bytes:
        received = b""
        async with aclosing(relay.stream(setting.version, 0, MIB)) as pieces:
            async for piece in pieces:
                received += piece
                path.write_bytes(bytes(MIB))
        return received

    assert asyncio.run(change_meanwhile()) == setting.content


def test_many_ranges_of_many_devices_cost_one_read(make: Make) -> None:
    size = 12 * BLOCK
    setting = make(size)
    relay = setting.relay()
    bounds = [size * number // 16 for number in range(17)]

    async def read_all() -> list[bytes]:
        setting.store.gate = asyncio.Event()
        readers = [
            asyncio.create_task(setting.read(relay, start, end))
            for _ in range(6)
            for start, end in itertools.pairwise(bounds)
        ]
        await asyncio.sleep(0.2)
        setting.store.gate.set()
        return await asyncio.gather(*readers)

    assert b"".join(asyncio.run(read_all())) == 6 * setting.content
    assert setting.store.streamed[KEY] == size


def test_process_that_was_stopped_is_not_waited_for_long(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_cache, "_PATIENCE_S", 0.1)
    setting = make(MIB)
    relay = setting.relay()
    folder = setting.folder / str(setting.version.cid)
    folder.mkdir(parents=True)
    with (folder / "0.part").open("wb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert asyncio.run(setting.read(relay, 0, MIB)) == setting.content


def test_folder_that_nobody_may_read_hurts_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make(MIB)
    relay = setting.relay()
    (setting.folder / "lost+found").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("lost+found"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert asyncio.run(setting.read(relay, 0, MIB)) == setting.content
    assert len(setting.blocks()) == 1


def test_folder_that_is_thrown_away_is_made_again(make: Make) -> None:
    setting = make(MIB)
    relay = setting.relay()
    asyncio.run(setting.read(relay, 0, MIB))
    shutil.rmtree(setting.folder)
    for _ in range(2):
        assert asyncio.run(setting.read(relay, 0, MIB)) == setting.content
    assert len(setting.blocks()) == 1
    assert setting.store.streamed[KEY] == 2 * MIB


def test_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="locked"):
        HotCache(tmp_path / "cache", capacity=1 << 30)


def test_store_that_lies_once_is_asked_again(make: Make) -> None:
    setting = make(2 * MIB)
    relay = setting.relay()
    setting.script("C")
    assert asyncio.run(setting.read(relay, 0, 2 * MIB)) == setting.content
    assert setting.marks.marked == []


def test_store_that_lies_twice_is_marked_and_nothing_is_kept(make: Make) -> None:
    setting = make(2 * MIB)
    relay = setting.relay()
    damaged = bytearray(setting.content)
    damaged[MIB] ^= 1
    setting.store.memory.delete(KEY)
    setting.store.memory.put(KEY, bytes(damaged))
    for _ in range(2):
        with pytest.raises(DigestMismatchError):
            asyncio.run(setting.read(relay, 0, 2 * MIB))
    assert setting.marks.marked[0] == (KEY, setting.version.cid, "digest_mismatch")
    assert setting.blocks() == []


def test_answer_that_ends_early_is_asked_for_from_there_on(make: Make) -> None:
    setting = make(3 * MIB)
    relay = setting.relay()
    setting.script("SOOO")
    assert asyncio.run(setting.read(relay, 0, 3 * MIB)) == setting.content


def test_store_that_stays_away_is_said_so_and_comes_back(make: Make) -> None:
    setting = make(MIB)
    relay = setting.relay()
    setting.script("T")
    with pytest.raises(TransientStorageError):
        asyncio.run(setting.read(relay, 0, MIB))
    assert setting.blocks() == []
    assert asyncio.run(setting.read(relay, 0, MIB)) == setting.content


def test_room_is_bounded_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_cache, "_SCAN_EVERY", 0)
    folder = tmp_path / "cache"
    settings_ = [Setting(folder, BLOCK - number) for number in range(6)]
    for setting in settings_:
        relay = setting.relay(capacity=3 * BLOCK)
        asyncio.run(setting.read(relay, 0, len(setting.content)))
        for path in setting.blocks():  # as if it had been long ago
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
        total = sum(path.stat().st_size for path in setting.blocks())
        assert total <= 3 * BLOCK
    newest = settings_[-1]
    assert (folder / str(newest.version.cid) / "0").exists()
    assert not (folder / str(settings_[0].version.cid)).exists()


def test_what_would_fill_the_cache_passes_it_by(make: Make) -> None:
    setting = make(2 * BLOCK)
    relay = setting.relay(capacity=3 * BLOCK)
    assert asyncio.run(setting.read(relay, 0, 2 * BLOCK)) == setting.content
    assert setting.blocks() == []


def test_full_disk_only_means_that_nothing_is_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setting = make(BLOCK + 9)
    relay = setting.relay()
    monkeypatch.setattr(hot_cache.Block, "write", full)
    assert asyncio.run(setting.read(relay, 0, BLOCK + 9)) == setting.content
    assert setting.blocks() == []


def test_disk_that_others_fill_is_left_room(make: Make) -> None:
    setting = make(MIB)
    free = shutil.disk_usage(setting.folder.parent).free
    cache = HotCache(setting.folder, capacity=1 << 30, min_free=2 * free)
    relay = Relay(setting.store, cache=cache)
    with capture_logs() as lines:
        assert asyncio.run(setting.read(relay, 0, MIB)) == setting.content
    assert setting.blocks() == []
    assert "cache.unwritable" in [line["event"] for line in lines]


def test_more_blocks_than_may_be_read_at_once_pass_the_cache_by(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_cache, "_FETCHES", 1)
    setting = make(3 * BLOCK)
    relay = setting.relay()
    assert asyncio.run(setting.read(relay, 0, 3 * BLOCK)) == setting.content


def test_leftovers_go_but_not_what_is_being_written(make: Make) -> None:
    setting = make(MIB)
    relay = setting.relay()
    folder = setting.folder / "bafkreileftover"
    folder.mkdir(parents=True)
    (folder / "1.part").write_bytes(b"left")
    with (folder / "2.part").open("wb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        asyncio.run(setting.read(relay, 0, MIB))
        names = [path.name for path in folder.iterdir()]
    assert names == ["2.part"]


def test_closing_ends_what_is_being_read(make: Make) -> None:
    setting = make(BLOCK)
    cache = HotCache(setting.folder, capacity=1 << 30)
    relay = Relay(setting.store, cache=cache)

    async def close() -> None:
        setting.store.gate = asyncio.Event()
        reader = asyncio.create_task(setting.read(relay, 0, BLOCK))
        await asyncio.sleep(0.05)
        await cache.close()
        setting.store.gate.set()
        assert await reader == setting.content  # past the cache

    asyncio.run(close())


def test_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="VISION_O3_CACHE_DIR"):
        HotCache(tmp_path / "file" / "cache", capacity=1 << 30)


def test_wrong_sidecar_is_asked_for_again_then_marked(make: Make) -> None:
    setting = make(2 * MIB)
    relay = Relay(setting.store, marks=setting.marks)
    setting.script("CO")
    assert relay.sidecar(setting.version) == setting.dag.sidecar()
    relay = Relay(setting.store, marks=setting.marks)
    setting.script("CC")
    with pytest.raises(IntegrityError):
        relay.sidecar(setting.version)
    assert [key for key, _, _ in setting.marks.marked] == [setting.version.sidecar_key]
