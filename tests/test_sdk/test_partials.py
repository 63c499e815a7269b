"""Partial files: shared by runs and processes, held by a lock that is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.fakes.fake_gateway import FakeGateway
from tests.test_sdk.conftest import MIB, FakeClock, MakeClient, content_of
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import CancelledError, DeadlineExceededError
from vision_o3.sdk import partials
from vision_o3.sdk.bounds import Bounds
from vision_o3.sdk.cache import Cache
from vision_o3.sdk.partials import extents, resume

CONTENT = content_of(2 * MIB)
CID_ = cid_of_bytes(CONTENT)
HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def holder(cache: Cache) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the partial file."""
    path = cache.partial_path(CID_)
    path.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_what_was_written_is_there_next_time(cache: Cache, clock: FakeClock) -> None:
    with resume(cache, CID_, 10, Bounds(clock)) as partial:
        assert partial is not None
        os.pwrite(partial.descriptor, b"abc", 0)
    with resume(cache, CID_, 10, Bounds(clock)) as partial:
        assert partial is not None
        assert os.pread(partial.descriptor, 10, 0) == b"abc"


def test_a_file_of_long_ago_is_gone_on_with(cache: Cache, clock: FakeClock) -> None:
    path = cache.partial_path(CID_)
    path.write_bytes(b"abc")
    os.utime(path, (1, 1))
    with resume(cache, CID_, 10, Bounds(clock)) as partial:
        assert partial is not None
        assert os.pread(partial.descriptor, 10, 0) == b"abc"


def test_nothing_is_left_where_nothing_came(cache: Cache, clock: FakeClock) -> None:
    with pytest.raises(ZeroDivisionError), resume(cache, CID_, 10, Bounds(clock)):
        raise ZeroDivisionError
    assert not cache.partial_path(CID_).exists()


def test_a_longer_file_is_cut(cache: Cache, clock: FakeClock) -> None:
    path = cache.partial_path(CID_)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 99)
    with resume(cache, CID_, 10, Bounds(clock)):
        assert path.stat().st_size == 10


@pytest.mark.usefixtures("holder")
def test_who_gives_up_waiting_leaves_the_file(cache: Cache, clock: FakeClock) -> None:
    with pytest.raises(DeadlineExceededError), resume(
        cache, CID_, 10, Bounds(clock, 1)
    ):
        pass
    assert cache.partial_path(CID_).exists()


def test_a_link_is_not_followed(cache: Cache, clock: FakeClock, tmp_path: Path) -> None:
    path = cache.partial_path(CID_)
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "other").write_bytes(b"other")
    path.symlink_to(tmp_path / "other")
    with resume(cache, CID_, 10, Bounds(clock)) as partial:
        assert partial is not None
        os.pwrite(partial.descriptor, b"new", 0)
    assert not path.is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"


def test_waits_for_another_process_and_goes_on_when_it_dies(
    cache: Cache, clock: FakeClock, holder: subprocess.Popen[str]
) -> None:
    seen: List[int] = []

    def watch(done: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            holder.kill()
            holder.wait()

    with resume(cache, CID_, len(CONTENT), Bounds(clock), watch) as partial:
        assert partial is not None
    assert seen == [0, 0, 0]


@pytest.mark.usefixtures("holder")
def test_takes_what_another_process_completed(cache: Cache, clock: FakeClock) -> None:
    def complete(_: int) -> None:
        cache.partial_path(CID_).unlink()

    with resume(cache, CID_, len(CONTENT), Bounds(clock), complete) as partial:
        assert partial is None


@pytest.mark.usefixtures("holder")
def test_does_not_wait_for_a_process_that_stopped(
    cache: Cache, clock: FakeClock
) -> None:
    with resume(cache, CID_, len(CONTENT), Bounds(clock)) as partial:
        assert partial is not None
    assert sum(clock.slept) > partials.IDLE_AFTER_S - 1


@pytest.mark.usefixtures("holder")
def test_waiting_can_be_cancelled(cache: Cache, clock: FakeClock) -> None:
    flag = threading.Event()
    flag.set()
    bounds = Bounds(clock, cancelled=flag)
    with pytest.raises(CancelledError), resume(cache, CID_, 10, bounds):
        pass


def test_both_write_right_leaves_if_the_lock_is_no_help(
    gateway: FakeGateway, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_try_lock", lambda _: True)
    content = content_of(30 * MIB)
    gateway.publish("m", content)
    paths = []

    def download() -> None:
        paths.append(make_client().download_model("m"))

    threads = [threading.Thread(target=download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == content


def test_threads_fetch_a_file_once(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    content = content_of(30 * MIB)
    gateway.publish("m", content)
    client = make_client(clock=None)
    threads = [
        threading.Thread(target=client.download_model, args=["m"]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gateway.body_bytes == len(content)


def test_extents_are_where_something_was_written(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w+b") as file:
        number = file.fileno()
        assert list(extents(number, 10 * MIB)) == []
        os.pwrite(number, b"x" * MIB, 2 * MIB)
        os.pwrite(number, b"x", 6 * MIB)
        found = list(extents(number, 10 * MIB))
        written = {2 * MIB, 3 * MIB - 1, 6 * MIB}
        assert all(any(at in extent for extent in found) for at in written)
        assert all(extent.stop <= 6 * MIB + 1 for extent in found)
        assert max(e.stop for e in extents(number, 4 * MIB)) <= 4 * MIB


def test_all_of_a_file_is_looked_at_where_holes_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "f").open("w+b") as file:
        os.pwrite(file.fileno(), b"x", 6 * MIB)
        monkeypatch.delattr(os, "SEEK_DATA", raising=False)
        assert list(extents(file.fileno(), 10 * MIB)) == [range(6 * MIB + 1)]
