from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.object_store import (
    KEY,
    MIB,
    ObjectStoreConformance,
    gather,
    put_file,
)
from tests.fakes.scripted_store import ScriptedStore
from vision_o3.errors import (
    AlreadyExistsError,
    ConfigurationError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    TransientStorageError,
)
from vision_o3.gateway.measured_store import MeasuredStore
from vision_o3.gateway.metrics import Metrics
from vision_o3.storage.base import ObjectStore
from vision_o3.storage.factory import (
    LocalLocation,
    S3Location,
    open_store,
    parse_location,
)
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


class TestMeasuredStore(ObjectStoreConformance):
    """What counts and times the gateway's store changes nothing of what it does."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return MeasuredStore(LocalStore(tmp_path / "objects"), Metrics())


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


def test_leftovers_of_the_dead_go_when_the_store_is_opened(
    local: LocalStore, tmp_path: Path
) -> None:
    incoming = tmp_path / "objects" / ".incoming"
    (incoming / "dead").write_bytes(b"killed in the middle of put")
    with local._incoming_file() as living:
        LocalStore(tmp_path / "objects")
        assert list(incoming.iterdir()) == [living]
    assert list(incoming.iterdir()) == []


def test_opening_the_store_disturbs_no_writer(
    local: LocalStore, tmp_path: Path
) -> None:
    def write(number: int) -> None:
        local.put(f"models/m/v{number}.pt", b"%d" % number)

    with ThreadPoolExecutor(5) as pool:
        writing = pool.map(write, range(1, 201))
        for _ in range(20):
            LocalStore(tmp_path / "objects")
        list(writing)
    assert sum(1 for _ in local.list()) == 200
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


def test_objects_survive_a_new_opening(local: LocalStore, tmp_path: Path) -> None:
    local.put(KEY, b"content")
    assert LocalStore(tmp_path / "objects").get(KEY, max_size=10) == b"content"


def test_relative_root_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore(Path("objects"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    store.put(KEY, b"content")
    assert store.get(KEY, max_size=10) == b"content"
    assert (tmp_path / "objects" / KEY).exists()


class Secret:
    """A directory outside of a store, and links to it from within."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "outside"
        self.directory.mkdir()
        (self.directory / "v1.pt").write_bytes(b"secret")
        models = tmp_path / "objects" / "models"
        models.mkdir()
        (models / "loop").symlink_to(models)
        (models / "folder").symlink_to(self.directory)
        (models / "file").mkdir()
        (models / "file" / "v1.pt").symlink_to(self.directory / "v1.pt")
        (models / "file" / "v3.pt").symlink_to(self.directory / "absent")


@pytest.mark.parametrize("name", ["file", "folder"])
def test_symbolic_links_lead_nowhere(
    local: LocalStore, tmp_path: Path, name: str
) -> None:
    secret = Secret(tmp_path)
    key = f"models/{name}/v1.pt"
    local.put("models/m/v1.pt", b"content")
    for prefix in ("", "models/", f"models/{name}/"):
        for found in local.list(prefix):
            assert found.key == "models/m/v1.pt"
    calls: list[Callable[[], object]] = [
        lambda: local.find(key),
        lambda: local.get(key, max_size=10),
        lambda: local.get_range(key, 0, 1),
        lambda: asyncio.run(gather(local, key, 0, 1)),
        lambda: local.delete(key),
        lambda: local.put(key, b"other"),
        lambda: put_file(local, tmp_path, key, b"other"),
        lambda: local.put("models/folder/v2.pt", b"other"),
        lambda: local.put("models/file/v3.pt", b"other"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="symbolic link"):
            call()
    assert [path.name for path in secret.directory.iterdir()] == ["v1.pt"]
    assert (secret.directory / "v1.pt").read_bytes() == b"secret"


def test_root_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "objects").symlink_to(tmp_path / "disk")
    store = LocalStore(tmp_path / "objects")
    store.put(KEY, b"content")
    assert store.get(KEY, max_size=10) == b"content"
    assert [found.key for found in store.list()] == [KEY]


def test_link_to_an_upload_is_stored_as_a_file(
    local: LocalStore, tmp_path: Path
) -> None:
    (tmp_path / "upload").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "upload")
    local.put_file(KEY, tmp_path / "link")
    assert not (tmp_path / "objects" / KEY).is_symlink()
    assert local.get(KEY, max_size=10) == b"content"


def test_files_that_are_no_objects_are_not_listed(
    local: LocalStore, tmp_path: Path
) -> None:
    root = tmp_path / "objects"
    (root / "models").mkdir()
    (root / "models" / "Notes.TXT").write_bytes(b"")
    (root / "models" / ".hidden").write_bytes(b"")
    (root / "lost+found").mkdir()
    (root / "lost+found" / "x").write_bytes(b"")
    os.mkfifo(root / "models" / "fifo")
    assert list(local.list()) == []


def test_listing_passes_over_what_goes_meanwhile(
    local: LocalStore, tmp_path: Path
) -> None:
    for number in range(3):
        local.put(f"models/m/v{number + 1}.pt", b"")
    listing = local.list()
    next(listing)
    shutil.rmtree(tmp_path / "objects" / "models")
    assert list(listing) == []


def test_listing_that_cannot_be_whole_is_an_error(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put(KEY, b"content")

    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        list(local.list())


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_a_file_cannot_be_linked_it_is_copied(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_links(monkeypatch, number, of=tmp_path / "upload")
    put_file(local, tmp_path, KEY, b"content")
    assert local.get(KEY, max_size=10) == b"content"
    with pytest.raises(AlreadyExistsError):
        put_file(local, tmp_path, KEY, b"other")
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


def test_link_that_fails_otherwise_is_an_error(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EIO, of=tmp_path / "upload")
    with pytest.raises(StorageError, match="Input/output error"):
        put_file(local, tmp_path, KEY, b"content")
    assert local.find(KEY) is None


def test_file_system_without_links_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    with pytest.raises(StorageError, match="no hard links"):
        LocalStore(tmp_path / "objects")
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EMFILE, TransientStorageError),
        (errno.EIO, StorageError),
    ],
)
def test_errors_of_the_disk_are_told_apart(
    local: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[StorageError],
) -> None:
    refuse_links(monkeypatch, number)
    with pytest.raises(StorageError) as caught:
        local.put(KEY, b"content")
    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, OSError)


def test_full_disk_can_still_be_opened_and_read(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put(KEY, b"content")
    refuse_links(monkeypatch, errno.ENOSPC)
    assert LocalStore(tmp_path / "objects").get(KEY, max_size=10) == b"content"


def refuse_links(
    monkeypatch: pytest.MonkeyPatch, number: int, of: Path | None = None
) -> None:
    """Let the operating system refuse hard links, of one file or of any."""
    link = os.link

    def refuse(source: Path, target: Path) -> None:
        if of in (None, source):
            raise OSError(number, os.strerror(number))
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)


def test_object_deleted_before_it_is_streamed_is_said_so(
    local: LocalStore, tmp_path: Path
) -> None:
    local.put(KEY, b"content")

    async def read() -> None:
        stream = local.stream(KEY, 0, 7)
        opening = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        (tmp_path / "objects" / KEY).unlink()
        await opening

    with pytest.raises(ObjectNotFoundError):
        asyncio.run(read())


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


def test_file_over_the_systems_limit_is_said_so(
    local: LocalStore, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(StorageFullError):
            local.put(KEY, bytes(2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(local.list()) == []
    assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


def test_location_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        open_store(str(tmp_path / "file" / "objects"))
    with pytest.raises(ConfigurationError, match="is empty"):
        open_store("")
    with pytest.raises(ConfigurationError, match="endpoint, a region and keys"):
        open_store("s3://bucket/prefix")


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("objects", LocalLocation(Path("objects"))),
        ("s3:/bucket", LocalLocation(Path("s3:/bucket"))),
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        ("s3://my.bucket-1/a/b.c/", S3Location("my.bucket-1", "a/b.c")),
        ("s3://" + "b" * 63, S3Location("b" * 63, "")),
    ],
)
def test_location_is_a_directory_or_a_bucket(location: str, place: object) -> None:
    assert parse_location(location) == place


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gs://bucket", "of a kind"),
        ("file:///canary", "of a kind"),
        ("S3://bucket", "of a kind"),
        ("s3://canary:secret@bucket/a", "before an '@'"),
        ("s3://", "no valid bucket"),
        ("s3://ab", "no valid bucket"),
        ("s3://" + "b" * 64, "no valid bucket"),
        ("s3://Canary", "no valid bucket"),
        ("s3://my_bucket", "no valid bucket"),
        ("s3://-bucket", "no valid bucket"),
        ("s3://bucket.", "no valid bucket"),
        ("s3://a..b", "no valid bucket"),
        ("s3://192.168.0.1/bucket", "no valid bucket"),
        ("s3://host:9000/bucket", "no valid bucket"),
        ("s3://bucket//a", "no valid prefix"),
        ("s3://bucket/a//", "no valid prefix"),
        ("s3://bucket/Canary", "no valid prefix"),
        ("s3://bucket/../a", "no valid prefix"),
        ("s3://bucket/a?b", "no valid prefix"),
        ("s3://bucket/" + "a/" * 300, "no valid prefix"),
    ],
)
def test_location_that_names_no_store_is_refused(location: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_location(location)
    assert "canary" not in str(caught.value).lower()


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


@pytest.mark.parametrize(
    ("letter", "first", "size"),
    [("C", b"\x01\x00", 3 * MIB), ("S", b"\x00\x00", MIB - 1), ("O", b"\0\0", 3 * MIB)],
)
def test_scripted_store_damages_streams(
    tmp_path: Path, letter: str, first: bytes, size: int
) -> None:
    store = ScriptedStore("O" + letter, MemoryStore())
    put_file(store, tmp_path, KEY, bytes(3 * MIB))
    received = asyncio.run(gather(store, KEY, 0, 3 * MIB))
    assert (received[:2], len(received)) == (first, size)
    assert asyncio.run(gather(store, KEY, 0, 3 * MIB)) == bytes(3 * MIB)
    assert store.calls == ["put_file", "stream", "stream"]


@pytest.mark.parametrize("letter", ["T", "X"])
def test_scripted_store_fails_streams(letter: str) -> None:
    store = ScriptedStore("O" + letter, MemoryStore())
    store.put(KEY, b"abc")
    with pytest.raises(TransientStorageError):
        asyncio.run(gather(store, KEY, 0, 3))
