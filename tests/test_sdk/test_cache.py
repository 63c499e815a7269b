from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import pytest

from tests.test_sdk.conftest import MIB, cached_files, content_of
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import CacheError, StorageFullError
from vision_o3.sdk import cache as cache_module
from vision_o3.sdk import disk
from vision_o3.sdk.cache import Cache, PartialFile
from vision_o3.sdk.disk import replace_text
from vision_o3.sdk.resolving import Resolutions

LARGE = content_of(2 * MIB + 7)
LARGE_CID = cid_of_bytes(LARGE)


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


DAY = 24 * 3600.0


@pytest.mark.parametrize(
    ("name", "days", "is_locked", "stays"),
    [
        ("0123.part", 0.9, False, True),
        ("0123.part", 1.1, False, False),
        ("0123.gone", 1.1, False, False),
        (f"{LARGE_CID}.part", 6.9, False, True),
        (f"{LARGE_CID}.part", 7.1, False, False),
        (f"{LARGE_CID}.part", 7.1, True, True),
    ],
)
def test_what_died_is_removed_in_time(
    cache: Cache, name: str, days: float, is_locked: bool, stays: bool
) -> None:
    path = begun(cache, LARGE_CID).with_name(name)
    path.with_name(f"{LARGE_CID}.part").rename(path)
    os.utime(path, (time.time() - days * DAY,) * 2)
    with path.open("rb") as file:
        if is_locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        put(cache, b"abc")
        assert path.exists() is stays


def test_folders_on_their_way_out_go_too(cache: Cache) -> None:
    doomed = begun(cache, LARGE_CID).with_name("0123.gone")
    doomed.mkdir()
    (doomed / "m.onnx").touch()
    os.utime(doomed, (0, 0))
    cache.prune()
    assert not doomed.exists()


def begun(cache: Cache, cid: CID, content: bytes = b"x" * 100_000) -> Path:
    """Let a transfer of a CID have begun."""
    path = cache.partial_path(cid)
    path.write_bytes(content)
    return path


def test_without_locks_only_what_is_old_is_unused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = begun(cache, LARGE_CID)
    cache.clear()
    assert path.exists()
    os.utime(path, (time.time() - 3601,) * 2)
    cache.clear()
    assert not path.exists()


@pytest.mark.parametrize("is_locked", [False, True])
def test_transfers_that_nobody_goes_on_with_give_way_before_artifacts(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, is_locked: bool
) -> None:
    cid, path = put(cache, b"abc"), begun(cache, LARGE_CID)
    needed = 10 + cache_module.SPARE_BYTES
    with path.open("rb") as file:
        if is_locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        set_free(monkeypatch, needed - 1, needed)
        cache.make_room(10)
    assert path.exists() is is_locked
    assert (cache.find(cid) is None) is is_locked


def test_room_is_not_made_of_what_is_pinned(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(cache, b"abc"), put(cache, b"defg")
    age(cache, first, 10)
    cache.pin(first)
    needed = 10 + cache_module.SPARE_BYTES
    set_free(monkeypatch, needed - 5)
    with pytest.raises(StorageFullError, match="unpin"):
        cache.make_room(10)
    assert len(cache.entries()) == 2, "nothing is sacrificed in vain"
    set_free(monkeypatch, needed - 4, needed)
    cache.make_room(10)
    assert [entry.cid for entry in cache.entries()] == [str(first)]
    assert second != first


def test_what_could_not_be_removed_makes_no_room(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = put(cache, b"abc")
    set_free(monkeypatch, 10 + cache_module.SPARE_BYTES - 1)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(StorageFullError):
        cache.make_room(10)
    assert cache.find(cid) is not None


def set_free(monkeypatch: pytest.MonkeyPatch, *frees: int) -> None:
    """Let the disk have so many bytes free, each time it is asked; then the last."""
    left = list(frees)

    class Usage:
        def __init__(self, _: object) -> None:
            self.free = left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(shutil, "disk_usage", Usage)


def refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, "No")


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
    make, evictions = disk.make_directory, [2]

    def make_and_evict(root: Path, *names: str) -> Path:
        path = make(root, *names)
        if "artifacts" in names and evictions[0]:
            evictions[0] -= 1
            path.rmdir()
        return path

    monkeypatch.setattr(disk, "make_directory", make_and_evict)
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


def test_a_file_that_took_the_name_of_another_is_not_kept(cache: Cache) -> None:
    path = cache.partial_path(LARGE_CID)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, LARGE)
        path.unlink()
        path.write_bytes(b"rotten")
        with pytest.raises(CacheError, match="was replaced"):
            cache.keep(PartialFile(descriptor, path), LARGE_CID, "m.onnx")
    finally:
        os.close(descriptor)
    assert cache.find(LARGE_CID, verify=False) is None


def test_of_two_names_of_a_file_one_is_kept(cache: Cache) -> None:
    put(cache, LARGE)
    kept = cache.find(LARGE_CID)
    assert kept is not None
    path = cache.partial_path(LARGE_CID)
    os.link(kept, path)
    with path.open("r+b") as file:
        partial = PartialFile(file.fileno(), path)
        assert cache.keep(partial, LARGE_CID, kept.name) == kept
    assert not path.exists()
    assert cache.find(LARGE_CID) == kept


# Pins


def test_what_is_pinned_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", max_bytes=15)
    cids = [put(cache, bytes([i]) * 10) for i in range(3)]
    for index, cid in enumerate(cids):
        age(cache, cid, 100 - index)
    cache.pin(cids[0])
    cache.evict(keep=cids[2])
    assert [entry.cid for entry in cache.entries() if entry.pinned] == [str(cids[0])]
    assert {entry.cid for entry in cache.entries()} == {str(cids[0]), str(cids[2])}
    assert Cache(tmp_path / "c").unpin(cids[0]), "a pin is of all processes"
    cache.evict()
    assert {entry.cid for entry in cache.entries()} == {str(cids[2])}


def test_pins_come_and_go_before_the_artifact(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", max_bytes=0)
    cid = cid_of_bytes(b"abc")
    assert not cache.unpin(cid)
    cache.pin(cid)
    cache.pin(cid)
    assert cache.pins() == {str(cid)}
    put(cache, b"abc")
    cache.prune()
    assert cache.find(cid) is not None
    assert (cache.unpin(cid), cache.unpin(cid)) == (True, False)
    assert cache.prune() == 3


def test_clear_removes_pins_and_transfers_that_nobody_goes_on_with(
    cache: Cache,
) -> None:
    cid, path = put(cache, b"abc"), begun(cache, LARGE_CID)
    cache.pin(cid)
    cache.clear()
    assert cache.pins() == set()
    assert cache.size() == 0
    assert not path.exists()


def test_a_pin_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="permissions"):
        Cache(tmp_path / "file").pin(cid_of_bytes(b"abc"))


# Pruning


@pytest.mark.parametrize(("max_bytes", "left"), [(None, 2), (25, 2), (9, 0), (99, 3)])
def test_prune_keeps_to_a_limit(
    tmp_path: Path, max_bytes: Optional[int], left: int
) -> None:
    cache = Cache(tmp_path / "c", max_bytes=20)
    for i in range(3):
        age(cache, put(cache, bytes([i]) * 10), 100 - i)
    assert cache.prune(max_bytes) == (3 - left) * 10
    assert [entry.files[0].read_bytes()[0] for entry in cache.entries()] == [
        *range(3 - left, 3)
    ]


def test_prune_removes_transfers_that_were_given_up(cache: Cache) -> None:
    path = begun(cache, LARGE_CID)
    size = path.stat().st_blocks * 512
    assert cache.prune() == 0
    os.utime(path, (0, 0))
    assert cache.prune() == size
    assert not path.exists()


def test_prune_says_when_it_could_not(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, b"abc")
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(CacheError, match="permissions"):
        cache.prune(0)
    assert cache.size() == 3


# Rot


def artifact(cache: Cache, cid: CID, name: str = "m.onnx") -> Path:
    return cache.directory / "artifacts" / str(cid) / name


def rot(path: Path, at: int = MIB + 5) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"!")


def states(cache: Cache) -> Dict[str, str]:
    return {each.path.name: each.state for each in cache.verify()}


def test_verify_tells_what_each_file_is(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, b"abc", "right")
    rot(artifact(cache, put(cache, b"def", "small"), "small"), 0)
    rot(artifact(cache, put(cache, LARGE, "large"), "large"))
    put(cache, b"ghi", "unreadable")
    put(cache, b"jkl", "gone")
    (cache.directory / "artifacts" / "no-cid").mkdir()
    (cache.directory / "artifacts" / "no-cid" / "other").touch()
    open_file = disk.open_file

    def refuse(path: Path) -> Any:
        if path.name == "unreadable":
            raise OSError(errno.EIO, "The sector is bad")
        if path.name == "gone":  # another process evicts it just now
            path.unlink()
        return open_file(path)

    monkeypatch.setattr(disk, "open_file", refuse)
    found = {"right": "right", "unreadable": "unreadable"}
    assert states(cache) == {**found, "small": "rotten", "large": "rotten"}
    assert states(cache) == found


def test_verify_tells_how_far_it_is(cache: Cache) -> None:
    for content in (b"", b"abc", LARGE):
        put(cache, content)
    told: List[Tuple[int, int]] = []
    assert len(list(cache.verify(lambda *each: told.append(each)))) == 3
    assert told == sorted(told)
    assert {total for _, total in told} == {told[-1][0]} == {len(LARGE) + 3}


@pytest.mark.parametrize("how", ["find", "read", "verify"])
@pytest.mark.parametrize("begun_before", [False, True])
def test_rot_is_where_the_next_download_goes_on(
    cache: Cache, how: str, begun_before: bool
) -> None:
    put(cache, LARGE)
    path = artifact(cache, LARGE_CID)
    rot(path)
    rotten = path.read_bytes()
    os.utime(path, (time.time() - 30 * DAY,) * 2)
    path.chmod(0o444)
    if begun_before:
        begun(cache, LARGE_CID, b"begun")
    use: Dict[str, Callable[[], object]] = {
        "find": lambda: cache.find(LARGE_CID, "m.onnx"),
        "read": lambda: cache.read(LARGE_CID, len(LARGE)),
        "verify": lambda: states(cache).pop("right", None),
    }
    assert use[how]() is None
    assert cache.find(LARGE_CID, verify=False) is None
    partial = cache.partial_path(LARGE_CID)
    assert partial.read_bytes() == (b"begun" if begun_before else rotten)
    assert partial.stat().st_mode & 0o600 == 0o600, "a transfer can go on"
    assert cache.missing() == [LARGE_CID]


def test_a_rotten_file_of_one_leaf_or_without_links_is_dropped(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refused)
    cids = [put(cache, content) for content in (b"abc", LARGE)]
    for cid in cids:
        rot(artifact(cache, cid), 0)
        assert cache.find(cid) is None
        assert not cache.partial_path(cid).exists()
    cache.discard(cids[0])
    assert cache.missing() == [cids[1]]


def test_all_names_of_a_rotten_file_go(cache: Cache) -> None:
    put(cache, LARGE)
    assert cache.find(LARGE_CID, "other.onnx") is not None
    rot(artifact(cache, LARGE_CID))
    assert states(cache) == {"m.onnx": "rotten", "other.onnx": "rotten"}
    assert cache.entries() == []


# Links


@pytest.mark.parametrize(
    "where", ["artifacts", f"artifacts/{LARGE_CID}", "partial", "pins", "resolved"]
)
def test_no_link_in_the_cache_is_followed(
    cache: Cache, tmp_path: Path, where: str
) -> None:
    resolutions = Resolutions(cache, "http://a")

    def fill() -> None:
        put(cache, LARGE)
        begun(cache, LARGE_CID)
        cache.pin(LARGE_CID)
        resolutions.keep("models", "m@1", {"a": 1})

    def found() -> Set[str]:
        return {
            *(f"entry {entry.cid}" for entry in cache.entries()),
            *(f"file {each.path.name}" for each in cache.verify()),
            *(f"pin {cid}" for cid in cache.pins()),
            *(f"key {key}" for key in resolutions.keys("models")),
            *(["found"] if cache.find(LARGE_CID, "m.onnx") else []),
            *(["resolved"] if resolutions.find("models", "m@1") else []),
        }

    fill()
    everything = found()
    path, outside = cache.directory / where, tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = snapshot(outside)
    seen = found()
    cache.evict()
    cache.prune(0)
    cache.clear()
    path.parent.mkdir(exist_ok=True)
    if os.path.lexists(path):
        disk.delete(path)  # the link, or what it gave way to
    path.symlink_to(outside)
    fill()
    assert snapshot(outside) == before
    assert not path.is_symlink()
    assert found() == everything
    assert (seen == everything) is (where == "partial"), "it was seen through the link"


def snapshot(directory: Path) -> Dict[str, Tuple[int, int]]:
    states = {str(path): path.stat() for path in directory.rglob("*")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


# Processes

WORK = """
import os, sys
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import VisionO3Error
from vision_o3.sdk.cache import Cache, PartialFile

task, cache, rounds = sys.argv[1], Cache(sys.argv[2], 3_000_000), int(sys.argv[3])
contents = [bytes([i]) * 1_200_000 for i in range(5)]
cids = [cid_of_bytes(content) for content in contents]
print("ready", flush=True)
sys.stdin.readline()
for i in range(rounds):
    cid, content = cids[i % 5], contents[i % 5]
    if task == "write":
        with cache.write(len(content)) as partial:
            os.write(partial.descriptor, content[:700_000])
            os.write(partial.descriptor, content[700_000:])
            cache.keep(partial, cid, "m.onnx")
        cache.evict(keep=cid)
    elif task == "read":
        path = cache.find(cid, verify=False)
        if path is not None:
            try:
                found = path.read_bytes()
            except FileNotFoundError:
                continue
            assert found == content, "half-written"
    elif task == "verify":
        for each in cache.verify():
            assert each.state == "right", each
    else:
        cache.prune(1_300_000)
        cache.entries()
"""


def test_processes_at_once_see_whole_files_only(cache: Cache) -> None:
    put(cache, b"abc", "pinned")
    cache.pin(cid_of_bytes(b"abc"))
    tasks = ["write", "write", "read", "verify", "prune"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, task, str(cache.directory), rounds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task, rounds in zip(tasks, ["25", "25", "150", "15", "50"])
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert list((cache.directory / "partial").iterdir()) == []
    assert all(each.state == "right" for each in cache.verify())
    assert cache.find(cid_of_bytes(b"abc")) is not None, "it is pinned"


# What is known of versions


def test_resolutions_are_kept_for_each_gateway(cache: Cache) -> None:
    first, second = Resolutions(cache, "http://a"), Resolutions(cache, "http://b")
    first.keep("models", Resolutions.key("m", 1), {"version": 1})
    assert first.find("models", "m@1") == {"version": 1}
    assert first.find("models", "m@latest") is None
    assert first.find("datasets", "m@1") is None
    assert second.find("models", "m@1") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\x00", "{}", '{"document": 1, "sha256": 1}']
)
def test_damaged_resolution_is_as_none(cache: Cache, text: str) -> None:
    resolutions = Resolutions(cache, "http://a")
    resolutions.keep("models", "m@1", {"version": 1})
    (path,) = cache.directory.rglob("m@1.json")
    path.write_text(text)
    assert resolutions.find("models", "m@1") is None


def test_any_changed_character_of_a_resolution_is_noticed(cache: Cache) -> None:
    resolutions = Resolutions(cache, "http://a")
    resolutions.keep("models", "m@1", {"cid": "abc", "version": 1})
    (path,) = cache.directory.rglob("m@1.json")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = resolutions.find("models", "m@1")
        assert found in (None, {"cid": "abc", "version": 1})
    path.write_bytes(whole.replace(b"abc", b"abd"))
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
