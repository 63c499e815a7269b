from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.test_sdk.conftest import cached_files, content_of
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import CacheError, StorageFullError
from vision_o3.sdk import cache as cache_module
from vision_o3.sdk.cache import Cache, Resolutions, replace_text


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def put(cache: Cache, content: bytes, filename: str = "m.onnx") -> CID:
    cid = cid_of_bytes(content)
    with cache.write(len(content)) as partial:
        os.write(partial.descriptor, content)
        cache.keep(partial, cid, filename)
    return cid


def age(cache: Cache, cid: CID, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.directory / "artifacts" / str(cid), (then, then))


def test_keeps_and_finds(cache: Cache) -> None:
    cid = put(cache, b"abc")
    path = cache.find(cid, "m.onnx")
    assert path == cache.directory / "artifacts" / str(cid) / "m.onnx"
    assert path.read_bytes() == b"abc"
    assert cache.size() == 3
    assert cache.find(cid) == path


def test_home_is_expanded() -> None:
    assert Cache("~/x").directory == Path.home() / "x"


def test_finds_nothing_where_nothing_is(cache: Cache) -> None:
    assert cache.find(cid_of_bytes(b"abc")) is None
    assert cache.entries() == []
    assert not cache.directory.exists()
    cache.clear()


def test_a_file_not_kept_is_gone(cache: Cache) -> None:
    with cache.write(3) as partial:
        os.write(partial.descriptor, b"abc")
    assert cached_files(cache.directory) == []


def test_files_have_the_usual_permissions(cache: Cache) -> None:
    path = cache.find(put(cache, b"abc"))
    assert path is not None
    usual = cache.directory / "usual"
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_rotten_file_is_dropped(cache: Cache) -> None:
    cid = put(cache, b"abc")
    path = cache.directory / "artifacts" / str(cid) / "m.onnx"
    path.write_bytes(b"abd")
    assert cache.find(cid, verify=False) == path
    assert cache.find(cid) is None
    assert not path.exists()


def test_a_rotten_file_that_cannot_be_removed_is_not_returned(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = put(cache, b"abc")
    path = cache.directory / "artifacts" / str(cid) / "m.onnx"
    path.write_bytes(b"abd")

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "No")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.find(cid) is None


def test_same_content_under_another_name_is_not_stored_twice(cache: Cache) -> None:
    cid = put(cache, b"abc")
    other = cache.find(cid, "other.onnx")
    assert other is not None
    assert other.read_bytes() == b"abc"
    assert cache.size() == 3
    assert [len(entry.files) for entry in cache.entries()] == [2]
    assert cache.find(cid, "other.onnx") == other


def test_a_disk_without_hard_links(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Not here")

    cid = put(cache, b"abc")
    monkeypatch.setattr(os, "link", refuse)
    assert cache.find(cid, "other.onnx") is None


@pytest.mark.parametrize("is_file", [True, False])
def test_another_process_was_faster_with_the_name(
    cache: Cache, is_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, target: Path) -> None:
        target.touch() if is_file else target.mkdir()
        raise FileExistsError

    cid = put(cache, b"abc")
    monkeypatch.setattr(os, "link", refuse)
    found = cache.find(cid, "other.onnx")
    assert (found is not None) is is_file


def test_links_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    content = b"abc"
    cid = cid_of_bytes(content)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "m.onnx").write_bytes(content)
    artifacts = cache.directory / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / str(cid)).symlink_to(outside)
    assert cache.find(cid, "m.onnx") is None
    put(cache, content)
    assert not (artifacts / str(cid)).is_symlink()
    (artifacts / str(cid) / "m.onnx").unlink()
    (artifacts / str(cid) / "m.onnx").symlink_to(outside / "m.onnx")
    assert cache.find(cid, "m.onnx") is None
    put(cache, content, "n.onnx")
    found = cache.find(cid, "m.onnx")  # the link gives way to the real file
    assert found is not None
    assert not found.is_symlink()
    cache.clear()
    assert (outside / "m.onnx").read_bytes() == content


def test_file_that_cannot_be_read_is_not_returned(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = put(cache, b"abc")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "No")

    monkeypatch.setattr(os, "open", refuse)
    assert cache.find(cid) is None


def test_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", max_bytes=25)
    cids = [put(cache, bytes([i]) * 10) for i in range(3)]
    for index, cid in enumerate(cids):
        age(cache, cid, 100 - index)
    assert cache.find(cids[0]) is not None  # used just now
    cache.evict(keep=cids[2])
    assert {entry.cid for entry in cache.entries()} == {str(cids[0]), str(cids[2])}


def test_never_evicts_what_was_just_fetched(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", max_bytes=5)
    first, second = put(cache, b"a" * 10), put(cache, b"b" * 10)
    age(cache, second, 50)
    cache.evict(keep=second)
    assert [entry.cid for entry in cache.entries()] == [str(second)]
    assert first != second
    cache.evict()
    assert cache.entries() == []


def test_space_is_checked_before(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cid = put(cache, b"abc")
    needed = 10_000 + cache_module.SPARE_BYTES
    frees = iter([needed - 1, needed])

    class Usage:
        def __init__(self, free: int) -> None:
            self.free = free

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed - 4))
    with pytest.raises(StorageFullError, match="Make room") as caught:  # noqa: SIM117 - 3.8
        with cache.write(10_000):
            pass
    assert caught.value.values == {"expected": needed, "actual": needed - 4}
    assert cache.find(cid) is not None, "nothing is sacrificed in vain"
    second = put_without_check(cache, b"defg")
    age(cache, cid, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(next(frees)))
    with cache.write(10_000):
        pass
    assert [entry.cid for entry in cache.entries()] == [str(second)]


def put_without_check(cache: Cache, content: bytes) -> CID:
    cid = cid_of_bytes(content)
    directory = cache.directory / "artifacts" / str(cid)
    directory.mkdir()
    (directory / "m.onnx").write_bytes(content)
    return cid


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFullError), (errno.EIO, CacheError)]
)
def test_errors_of_the_disk_are_ours(cache: Cache, number: int, error: Any) -> None:
    with pytest.raises(error), cache.write(3):
        raise OSError(number, os.strerror(number))
    assert cached_files(cache.directory) == []


def test_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "c")
    with pytest.raises(CacheError, match="permissions"), cache.write(1):
        pass


def test_what_died_is_removed_after_a_day(cache: Cache) -> None:
    partial = cache.directory / "partial"
    (partial / "old.gone").mkdir(parents=True)
    for path in (partial / "old.part", partial / "new.part"):
        path.touch()
    for path in (partial / "old.part", partial / "old.gone"):
        os.utime(path, (0, 0))
    put(cache, b"abc")
    assert [path.name for path in partial.iterdir()] == ["new.part"]


def test_clear_removes_all_but_what_is_in_use(cache: Cache) -> None:
    resolutions = Resolutions(cache, "http://a")
    put(cache, b"abc")
    resolutions.keep("models", "m@1", {"a": 1})
    (cache.directory / "login.json").write_text("{}")
    with cache.write(3) as partial:
        os.write(partial.descriptor, b"def")
        cache.clear()
        assert cache.size() == 0
        assert resolutions.find("models", "m@1") is None
        cache.keep(partial, cid_of_bytes(b"def"), "n.onnx")
    assert cache.size() == 3
    assert (cache.directory / "login.json").exists()


def test_clear_says_when_it_could_not(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "No")

    put(cache, b"abc")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CacheError, match="could be removed"):
        cache.clear()


def test_eviction_by_another_process_in_between(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, evictions = cache_module._make_directory, [2]

    def make_and_evict(path: Path) -> None:
        make(path)
        if evictions[0]:
            evictions[0] -= 1
            path.rmdir()

    monkeypatch.setattr(cache_module, "_make_directory", make_and_evict)
    assert cache.find(put(cache, b"abc")) is not None
    evictions[0] = 99
    with pytest.raises(CacheError, match="cannot be made"):
        put(cache, b"def")


def test_writers_at_once_agree(cache: Cache) -> None:
    content = content_of(300_000)

    def work() -> None:
        for _ in range(5):
            put(cache, content)
            cache.evict(keep=cid_of_bytes(content))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.find(cid_of_bytes(content)) is not None
    assert len(cached_files(cache.directory)) == 1


def test_an_entry_that_vanishes_is_not_listed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, b"abc")

    def vanished(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "lstat", vanished)
    assert cache.entries() == []


# What is known of versions


def test_resolutions_are_kept_for_each_gateway(cache: Cache) -> None:
    first, second = Resolutions(cache, "http://a"), Resolutions(cache, "http://b")
    first.keep("models", Resolutions.key("m", 1), {"version": 1})
    assert first.find("models", "m@1") == {"version": 1}
    assert first.find("models", "m@latest") is None
    assert first.find("datasets", "m@1") is None
    assert second.find("models", "m@1") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"a": 1' + " " * (1 << 20)])
def test_damaged_resolution_is_as_none(cache: Cache, text: str) -> None:
    resolutions = Resolutions(cache, "http://a")
    resolutions.keep("models", "m@1", {"version": 1})
    (path,) = cache.directory.rglob("m@1.json")
    path.write_text(text)
    assert resolutions.find("models", "m@1") is None


def test_resolution_that_is_a_link_is_as_none(cache: Cache, tmp_path: Path) -> None:
    resolutions = Resolutions(cache, "http://a")
    resolutions.keep("models", "m@1", {"version": 1})
    (path,) = cache.directory.rglob("m@1.json")
    path.rename(tmp_path / "moved.json")
    path.symlink_to(tmp_path / "moved.json")
    assert resolutions.find("models", "m@1") is None


def test_resolution_that_cannot_be_kept_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Resolutions(Cache(tmp_path / "file"), "http://a").keep("models", "m@1", {})


def test_a_text_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    replace_text(path, "old", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(_: int, error: Optional[int] = errno.ENOSPC) -> None:
        raise OSError(error, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        replace_text(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["t.json"]
    assert path.read_text() == "old"


# Small contents


def test_reads_what_is_small_and_right(cache: Cache) -> None:
    cid = put(cache, b"abc")
    age(cache, cid, 100)
    assert cache.read(cid, 3) == b"abc"
    assert cache.read(cid, 2) is None
    assert cache.read(cid_of_bytes(b"other"), 100) is None
    assert time.time() - cache.entries()[0].used_at < 50


def test_does_not_read_what_is_rotten(cache: Cache) -> None:
    cid = put(cache, b"abc")
    path = cache.find(cid)
    assert path is not None
    path.write_bytes(b"abd")
    assert cache.read(cid, 100) is None
    assert not path.exists()


def test_reads_another_name_where_one_is_rotten(cache: Cache) -> None:
    cid = put(cache, b"abc", "a")
    put(cache, b"abc", "b")
    (cache.directory / "artifacts" / str(cid) / "a").write_bytes(b"abd")
    assert cache.read(cid, 100) == b"abc"


def test_does_not_read_through_links(cache: Cache, tmp_path: Path) -> None:
    cid = put(cache, b"abc")
    path = cache.directory / "artifacts" / str(cid) / "m.onnx"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert cache.read(cid, 100) is None


def test_what_cannot_be_read_is_not_there(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = put(cache, b"abc")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "No")

    monkeypatch.setattr(os, "open", refuse)
    assert cache.read(cid, 100) is None


def test_does_not_look_at_everything_after_each_small_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", max_bytes=6400)
    for number in range(70):
        cid = put(cache, number.to_bytes(2, "big") * 50)
        cache.evict(keep=cid)
        assert cache.size() <= 6400 + 100
    assert cache.size() > 6000
