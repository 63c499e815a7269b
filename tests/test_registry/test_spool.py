from __future__ import annotations

import asyncio
import os
import random
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import LimitExceededError, StorageError, StorageFullError
from vision_o3.registry.spool import Spool, Spooled, SpoolWriter

MIB = 1 << 20


def receive(spool: Spool, pieces: list[bytes]) -> tuple[Spooled, bytes]:
    async def run() -> tuple[Spooled, bytes]:
        async with spool.open() as writer:
            for piece in pieces:
                await writer.write(piece)
            spooled = await writer.finish()
            assert writer.received == spooled.dag.size
            return spooled, spooled.path.read_bytes()

    return asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 17])
def test_received_file_is_what_was_sent_and_is_named(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    spool = Spool(tmp_path / "spool", max_size=1 << 30, min_free=0)
    pieces = [content[i : i + 300_001] for i in range(0, size, 300_001)]
    spooled, received = receive(spool, pieces)
    assert received == content
    assert spooled.dag.root == cid_of_bytes(content)
    assert not spooled.path.exists()
    spool.close()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3 * MIB), max_size=6))
def test_cid_does_not_depend_on_how_the_bytes_come(sizes: list[int]) -> None:
    import tempfile  # noqa: PLC0415 - function-scoped fixtures do not mix with given

    content = random.Random(1).randbytes(sum(sizes))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(content[at : at + size])
        at += size
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(Path(directory), max_size=1 << 30, min_free=0)
        assert receive(spool, pieces)[0].dag.root == cid_of_bytes(content)
        spool.close()


def test_more_than_the_limit_is_refused_on_the_way(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_size=MIB, min_free=0)
    with pytest.raises(LimitExceededError) as caught:
        receive(spool, [bytes(MIB), b"x"])
    assert caught.value.values["limit"] == MIB
    assert list(tmp_path.iterdir()) == []


def test_expected_size_over_limit_or_space_is_refused_at_once(tmp_path: Path) -> None:
    async def open_for(spool: Spool, size: int) -> None:
        async with spool.open(expected_size=size):
            pytest.fail("opened")

    small = Spool(tmp_path, max_size=10, min_free=0)
    with pytest.raises(LimitExceededError):
        asyncio.run(open_for(small, 11))
    full = Spool(tmp_path, max_size=1 << 62, min_free=0)
    with pytest.raises(StorageFullError):
        asyncio.run(open_for(full, 1 << 60))
    kept_free = Spool(tmp_path, max_size=1 << 62, min_free=1 << 60)
    with pytest.raises(StorageFullError):
        asyncio.run(open_for(kept_free, 1))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_on_the_way_is_said_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_size=1 << 30, min_free=0)

    async def write_to_full_device() -> None:
        descriptor = os.open("/dev/full", os.O_RDWR)
        try:
            writer = SpoolWriter(spool, tmp_path / "x", descriptor, spool._pool)
            await writer.write(bytes(MIB))
            await writer.finish()
        finally:
            await writer.settle()
            os.close(descriptor)

    with pytest.raises(StorageFullError):
        asyncio.run(write_to_full_device())
    spool.close()


def test_unwritable_spool_is_the_operators_problem(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    spool = Spool(directory, max_size=10, min_free=0)
    directory.rmdir()
    with pytest.raises(StorageError) as caught:
        receive(spool, [b"x"])
    assert not isinstance(caught.value, StorageFullError)


def test_file_is_removed_when_the_sender_breaks_off(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_size=1 << 30, min_free=0)

    async def break_off() -> None:
        async with spool.open() as writer:
            await writer.write(bytes(6 * MIB))
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(break_off())
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_but_not_uploads_in_progress(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_size=1 << 30, min_free=0)
    (tmp_path / "dead.upload").write_bytes(b"left by a killed gateway")
    (tmp_path / "notes.txt").write_bytes(b"not ours")

    async def sweep_during_upload() -> int:
        async with spool.open() as writer:
            await writer.write(b"alive")
            removed = spool.remove_leftovers()
            spooled = await writer.finish()
            assert spooled.path.read_bytes() == b"alive"
            return removed

    assert asyncio.run(sweep_during_upload()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_single_bytes_take_no_more_memory_than_many_at_once(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(64 << 10)

    async def receive_in(step: int) -> tuple[int, CID, bytes]:
        async with spool.open() as writer:
            tracemalloc.start()
            for start in range(0, len(content), step):
                await writer.write(content[start : start + step])
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            spooled = await writer.finish()
            return most, spooled.dag.root, spooled.path.read_bytes()

    with closing(Spool(tmp_path, max_size=1 << 30, min_free=0)) as spool:
        most, root, kept = asyncio.run(receive_in(1))
        assert kept == content
        assert root == asyncio.run(receive_in(1 << 20))[1]
        assert most < 32 * len(content)  # each byte by itself takes more than 200
