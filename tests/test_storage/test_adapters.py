from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.object_store import KEY, ObjectStoreConformance, put_file
from tests.fakes.scripted_store import ScriptedStore

from vision_o3.errors import (
    ConfigurationError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    TransientStorageError,
)
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.factory import open_store
from vision_o3.storage.local import LocalStore
from vision_o3.storage.memory import MemoryStore


class TestMemoryStore(ObjectStoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestLocalStore(ObjectStoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return LocalStore(tmp_path / "objects")


class TestLocalStoreOnAnotherFileSystem(ObjectStoreConformance):
    """The spool and the store on different file systems: a copy, not a link."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ObjectStore]:
        memory = Path("/dev/shm")  # noqa: S108 - the other file system
        if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("There is no second file system here (/dev/shm).")
        with tempfile.TemporaryDirectory(dir=memory) as directory:
            yield LocalStore(Path(directory) / "objects")


class TestScriptedStore(ObjectStoreConformance):
    """The fake keeps the contract while it is told to fail nothing."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        return ScriptedStore("", MemoryStore())


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


def test_objects_are_plain_read_only_files(local: LocalStore, tmp_path: Path) -> None:
    local.put(KEY, b"content")
    path = tmp_path / "objects" / KEY
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o444


def test_storing_a_file_copies_no_byte(local: LocalStore, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"content")
    local.put_file(KEY, upload)
    assert (tmp_path / "objects" / KEY).stat().st_ino == upload.stat().st_ino


def test_half_written_objects_are_never_listed(
    local: LocalStore, tmp_path: Path
) -> None:
    incoming = tmp_path / "objects" / ".incoming"
    (incoming / "half").write_bytes(b"killed in the middle of put")
    assert list(local.list()) == []


def test_old_leftovers_go_when_the_store_is_opened(
    tmp_path: Path,
) -> None:
    LocalStore(tmp_path / "objects")
    incoming = tmp_path / "objects" / ".incoming"
    (incoming / "old").write_bytes(b"")
    (incoming / "new").write_bytes(b"")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(incoming / "old", (long_ago, long_ago))
    LocalStore(tmp_path / "objects")
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_failed_put_leaves_nothing(local: LocalStore, tmp_path: Path) -> None:
    local.put(KEY, b"content")
    with pytest.raises(Exception, match="already"):
        local.put(KEY, b"other")
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


def test_absent_upload_is_said_so(local: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        local.put_file(KEY, tmp_path / "nothing")


def test_object_that_shrinks_while_streamed_is_an_error(
    local: LocalStore, tmp_path: Path
) -> None:
    import asyncio  # noqa: PLC0415 - for this test only

    put_file(local, tmp_path, KEY, bytes(3 << 20))
    path = tmp_path / "objects" / KEY
    path.chmod(0o600)

    async def read() -> None:
        async for _ in local.stream(KEY, 0, 3 << 20):
            os.truncate(path, 1 << 20)

    with pytest.raises(StorageError, match="shorter"):
        asyncio.run(read())


def test_full_disk_is_said_so(tmp_path: Path) -> None:
    """On a real full disk: a small file system in memory, where that can be made."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.system(  # noqa: S605 - fixed words
        f"{mount} -t tmpfs -o size=256k tmpfs {mounted} 2>/dev/null"
    ):
        pytest.skip("A small file system cannot be mounted here (needs root).")
    try:
        store = LocalStore(mounted / "objects")
        with pytest.raises(StorageFullError):
            store.put(KEY, bytes(1 << 20))
        with pytest.raises(StorageFullError):
            put_file(store, tmp_path, KEY, bytes(1 << 20))
        assert list(store.list()) == []
        store.put(KEY, b"small")
    finally:
        os.system(f"umount {mounted}")  # noqa: S605


def test_location_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        open_store(str(tmp_path / "file" / "objects"))
    with pytest.raises(ConfigurationError, match="Name a directory"):
        open_store("ftp://somewhere/else")


def test_factory_opens_a_directory(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new" / "objects"))
    store.put(KEY, b"content")
    assert (tmp_path / "new" / "objects" / KEY).exists()


@pytest.mark.parametrize(
    ("letter", "content"), [("C", b"\x60bc"), ("S", b"ab"), ("O", b"abc")]
)
def test_scripted_store_damages_reads(letter: str, content: bytes) -> None:
    store = ScriptedStore("O" + letter, MemoryStore())
    store.put(KEY, b"abc")
    assert store.get(KEY, max_size=9) == content
    assert store.calls == ["put", "get"]


def test_scripted_store_loses_answers() -> None:
    store = ScriptedStore("XT", MemoryStore())
    with pytest.raises(TransientStorageError):
        store.put(KEY, b"abc")
    with pytest.raises(TransientStorageError):
        store.get(KEY, max_size=9)
    assert store.get(KEY, max_size=9) == b"abc"
    with pytest.raises(ObjectNotFoundError):
        store.get("models/none/v1.pt", max_size=9)
