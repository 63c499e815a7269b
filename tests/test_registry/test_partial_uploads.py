from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vision_o3.content.cid import CID
from vision_o3.content.dag import ContentHasher, Dag, cid_of_bytes
from vision_o3.errors import (
    CIDMismatchError,
    IncompleteUploadError,
    InputError,
    InvalidRangeError,
    LimitExceededError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnsafeContentError,
    UploadInProgressError,
    VisionO3Error,
)
from vision_o3.registry.partial_uploads import PartialUpload, PartialUploads
from vision_o3.registry.spool import Spool

MIB = 1 << 20
SIZE = 5 * MIB + 17
CONTENT = random.Random(7).randbytes(SIZE)
DAY = 86_400.0


def dag_of(content: bytes) -> Dag:
    hasher = ContentHasher()
    hasher.update(content)
    return hasher.finish()


DAG = dag_of(CONTENT)
SIDECAR = DAG.sidecar() or b""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", max_size=1 << 30, min_free=0)
    yield spool
    spool.close()


@pytest.fixture
def uploads(spool: Spool) -> PartialUploads:
    return PartialUploads(spool, expires_s=DAY)


def begin(uploads: PartialUploads, owner: str = "ann") -> PartialUpload:
    return uploads.begin(owner, DAG.root, SIDECAR)


def send(
    uploads: PartialUploads,
    offset: int,
    content: bytes,
    size: int | None = None,
    piece_size: int = 300_001,
) -> None:
    """Send a part, all of it or only the first bytes."""

    async def run() -> None:
        announced = len(content) if size is None else size
        async with uploads.open_part("ann", DAG.root, offset, announced) as writer:
            for at in range(0, len(content), piece_size):
                await writer.write(content[at : at + piece_size])
            await writer.finish()

    asyncio.run(run())


def missing(uploads: PartialUploads) -> Sequence[tuple[int, int]]:
    return uploads.find("ann", DAG.root).missing


def files(spool: Spool) -> list[Path]:
    return [path for path in spool.directory.rglob("*") if path.is_file()]


def data_file(spool: Spool) -> Path:
    (found,) = spool.directory.glob("partial/*/data")
    return found


def test_begins_empty_and_is_found_again(uploads: PartialUploads, spool: Spool) -> None:
    first = begin(uploads)
    assert first.created
    assert (first.cid, first.file_size, first.received) == (DAG.root, SIZE, 0)
    assert first.missing == ((0, SIZE),)
    again = begin(uploads)
    assert not again.created
    assert again.missing == first.missing
    assert data_file(spool).stat().st_blocks == 0
    left = first.expires_at.timestamp() - time.time()
    assert DAY - 60 < left <= DAY


def test_parts_in_any_order_and_again_make_the_file(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    send(uploads, 4 * MIB, CONTENT[4 * MIB :])
    assert missing(uploads) == ((0, 4 * MIB),)
    send(uploads, MIB, CONTENT[MIB : 2 * MIB], piece_size=MIB)
    assert missing(uploads) == ((0, MIB), (2 * MIB, 4 * MIB))
    send(uploads, MIB, CONTENT[MIB : 4 * MIB], piece_size=7 * MIB)
    with uploads.complete("ann", DAG.root) as spooled:
        assert spooled is None
    send(uploads, 0, CONTENT[:MIB])
    assert missing(uploads) == ()
    with uploads.complete("ann", DAG.root) as spooled:
        assert spooled is not None
        assert spooled.dag == DAG
        assert spooled.path.read_bytes() == CONTENT
    assert files(spool) == []
    with pytest.raises(NotFoundError):
        missing(uploads)


def test_another_process_goes_on(uploads: PartialUploads, tmp_path: Path) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT[: 2 * MIB])
    other = Spool(tmp_path / "spool", max_size=1 << 30, min_free=0)
    found = PartialUploads(other, expires_s=DAY).find("ann", DAG.root)
    assert (found.received, found.missing) == (2 * MIB, ((2 * MIB, SIZE),))
    other.close()


def test_what_is_missing_of_a_range(uploads: PartialUploads) -> None:
    begin(uploads)
    send(uploads, 2 * MIB, CONTENT[2 * MIB : 3 * MIB])
    found = uploads.find("ann", DAG.root, MIB, 3 * MIB)
    assert (found.received, found.missing) == (MIB, ((MIB, 2 * MIB),))
    for start, end in ((0, 0), (1, MIB), (0, MIB + 1), (0, 6 * MIB), (MIB, 0)):
        with pytest.raises(InvalidRangeError):
            uploads.find("ann", DAG.root, start, end)


@pytest.mark.parametrize("sent", [0, 1, MIB - 1, MIB, 2 * MIB + 5, 3 * MIB - 1])
def test_a_part_that_breaks_off_keeps_its_whole_leaves(
    uploads: PartialUploads, sent: int
) -> None:
    begin(uploads)
    with pytest.raises(IncompleteUploadError):
        send(uploads, MIB, CONTENT[MIB : MIB + sent], size=3 * MIB)
    whole = MIB + sent // MIB * MIB
    expected = ((0, MIB), (whole, SIZE)) if sent >= MIB else ((0, SIZE),)
    assert missing(uploads) == expected


@pytest.mark.parametrize("leaf", range(6))
def test_a_wrong_leaf_is_refused_and_right_ones_before_it_stay(
    uploads: PartialUploads, leaf: int
) -> None:
    begin(uploads)
    damaged = bytearray(CONTENT)
    damaged[leaf * MIB + 16] ^= 1
    with pytest.raises(CIDMismatchError, match="damaged"):
        send(uploads, 0, bytes(damaged))
    found = missing(uploads)
    end = min((leaf + 1) * MIB, SIZE)
    assert found[0][0] == leaf * MIB
    assert found[0][1] >= end
    send(uploads, leaf * MIB, CONTENT[leaf * MIB :])
    assert missing(uploads) == ()


def test_what_rots_on_disk_is_missing_again(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    with data_file(spool).open("r+b") as file:
        file.seek(3 * MIB)
        file.write(bytes([CONTENT[3 * MIB] ^ 1]))
    assert missing(uploads) == ((3 * MIB, 4 * MIB),)
    with uploads.complete("ann", DAG.root) as spooled:
        assert spooled is None


def test_leaves_of_zeros_are_there_as_holes(uploads: PartialUploads) -> None:
    """A file system may make a hole of them; so they need not be sent either."""
    content = bytes(MIB) + b"x" * MIB + bytes(MIB + 5)
    dag = dag_of(content)
    found = uploads.begin("ann", dag.root, dag.sidecar() or b"")
    assert found.missing == ((MIB, 2 * MIB),)

    async def run() -> None:
        async with uploads.open_part("ann", dag.root, MIB, MIB) as writer:
            await writer.write(content[MIB : 2 * MIB])
            await writer.finish()

    asyncio.run(run())
    with uploads.complete("ann", dag.root) as spooled:
        assert spooled is not None
        assert spooled.path.read_bytes() == content


def test_what_others_began_counts_as_taken(
    uploads: PartialUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    free = usage._replace(free=12 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(uploads._spool, "_min_free", 2 * MIB)
    for number, owner in enumerate(("ann", "bob", "cleo")):
        dag = dag_of(bytes([number + 1]) * 3 * MIB)
        uploads.begin(owner, dag.root, dag.sidecar() or b"")
    dag = dag_of(b"z" * 3 * MIB)
    with pytest.raises(StorageFullError):
        uploads.begin("dora", dag.root, dag.sidecar() or b"")


def test_what_one_owner_begins_leaves_room_for_others(
    uploads: PartialUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    free = usage._replace(free=12 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(uploads._spool, "_min_free", 2 * MIB)
    dags = [dag_of(bytes([number]) * 3 * MIB) for number in range(3)]
    for dag in dags[:2]:
        uploads.begin("ann", dag.root, dag.sidecar() or b"")
    with pytest.raises(StorageFullError):
        uploads.begin("ann", dags[2].root, dags[2].sidecar() or b"")
    assert uploads.begin("bob", dags[2].root, dags[2].sidecar() or b"").created


def test_a_part_leaves_free_what_must_be_free(
    uploads: PartialUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    dag = dag_of(b"z" * 3 * MIB)
    uploads.begin("ann", dag.root, dag.sidecar() or b"")
    monkeypatch.setattr(uploads._spool, "_min_free", 1 << 60)

    async def run() -> None:
        async with uploads.open_part("ann", dag.root, 0, MIB):
            pass

    with pytest.raises(StorageFullError):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (1, MIB),
        (0, MIB + 1),
        (0, 6 * MIB),
        (6 * MIB, MIB),
        (5 * MIB, 16),
        (-MIB, MIB),
        (0, 0),
    ],
)
def test_parts_of_other_than_whole_leaves_are_refused(
    uploads: PartialUploads, offset: int, size: int
) -> None:
    begin(uploads)
    with pytest.raises(InvalidRangeError) as caught:
        send(uploads, offset, b"", size=size)
    assert caught.value.values["size"] == SIZE


def test_more_bytes_than_announced_are_refused(uploads: PartialUploads) -> None:
    begin(uploads)
    with pytest.raises(InputError, match="more than"):
        send(uploads, 0, CONTENT[: MIB + 1], size=MIB)


def test_an_upload_is_its_owners(uploads: PartialUploads) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    for owner in ("bob", "", "../ann", "an", "ann\0"):
        with pytest.raises(NotFoundError):
            uploads.find(owner, DAG.root)
        with uploads.complete(owner, DAG.root) as spooled:
            assert spooled is None
    assert begin(uploads, "bob").missing == ((0, SIZE),)


def test_no_name_from_outside_becomes_a_path(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads, "../../../etc")
    (found,) = spool.directory.glob("partial/*")
    assert set(found.name) <= set("0123456789abcdef-")
    assert [path.name for path in spool.directory.parent.iterdir()] == ["spool"]


def damaged_sidecars() -> Iterator[bytes]:
    yield b""
    yield SIDECAR[:-1]
    yield SIDECAR + b"\0"
    yield SIDECAR[:-1] + bytes([SIDECAR[-1] ^ 1])
    yield dag_of(bytes(2 * MIB)).sidecar() or b""


@pytest.mark.parametrize("sidecar", list(damaged_sidecars()))
def test_a_wrong_sidecar_leaves_nothing(
    uploads: PartialUploads, spool: Spool, sidecar: bytes
) -> None:
    with pytest.raises(CIDMismatchError):
        uploads.begin("ann", DAG.root, sidecar)
    assert files(spool) == []


def test_a_file_of_one_leaf_has_no_parts(uploads: PartialUploads) -> None:
    with pytest.raises(InputError, match="form"):
        uploads.begin("ann", cid_of_bytes(b"x"), b"")


@pytest.mark.parametrize(
    ("max_size", "min_free", "error"),
    [
        (SIZE - 1, 0, LimitExceededError),
        (1 << 30, 1 << 60, StorageFullError),
    ],
)
def test_size_and_room_are_checked_before_a_byte_comes(
    tmp_path: Path, max_size: int, min_free: int, error: type[VisionO3Error]
) -> None:
    spool = Spool(tmp_path, max_size=max_size, min_free=min_free)
    with pytest.raises(error):
        begin(PartialUploads(spool, expires_s=DAY))
    assert list(tmp_path.iterdir()) == []
    spool.close()


def test_a_disk_that_fills_is_said_so_and_the_upload_stays(
    uploads: PartialUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT[:MIB])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(StorageFullError):
            send(uploads, MIB, CONTENT[MIB:])
    assert missing(uploads) == ((MIB, SIZE),)


def test_a_disk_that_fails_is_the_operators_problem(
    uploads: PartialUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("os.pread", broken)
    with pytest.raises(StorageError):
        uploads.find("ann", DAG.root)
    with pytest.raises(StorageError):
        begin(uploads)
    with pytest.raises(StorageError), uploads.complete("ann", DAG.root):
        pytest.fail("yielded")


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (UnsafeContentError("no"), False),
        (LimitExceededError("no"), False),
        (UploadInProgressError("wait"), True),
        (StorageError("down"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_an_upload_that_may_yet_be_published_is_kept(
    uploads: PartialUploads, spool: Spool, error: BaseException, *, kept: bool
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    with pytest.raises(type(error)), uploads.complete("ann", DAG.root):
        raise error
    assert bool(files(spool)) == kept


def test_two_may_publish_at_once_and_the_last_removes_it(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    with uploads.complete("ann", DAG.root) as first:
        with uploads.complete("ann", DAG.root) as second:
            assert first is not None
            assert second is not None
        assert first.path.read_bytes() == CONTENT
        with pytest.raises(UploadInProgressError):
            uploads.forget("ann", DAG.root)
    assert files(spool) == []


def test_forgets(uploads: PartialUploads, spool: Spool) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    uploads.forget("ann", DAG.root)
    assert files(spool) == []
    with pytest.raises(NotFoundError):
        uploads.forget("ann", DAG.root)
    with pytest.raises(NotFoundError):
        send(uploads, 0, CONTENT)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_only_what_nothing_came_for_expires(
    uploads: PartialUploads, spool: Spool
) -> None:
    assert uploads.remove_expired() == 0
    begin(uploads)
    age(data_file(spool), DAY - 60)
    assert uploads.remove_expired() == 0
    age(data_file(spool), DAY + 60)
    begin(uploads)  # it lasts anew
    assert uploads.remove_expired() == 0
    age(data_file(spool), DAY + 60)
    send(uploads, 0, CONTENT)
    assert uploads.remove_expired() == 0
    age(data_file(spool), DAY + 60)
    with uploads.complete("ann", DAG.root) as spooled:
        assert spooled is not None
        assert uploads.remove_expired() == 0
        assert spooled.path.read_bytes() == CONTENT
    begin(uploads)
    age(data_file(spool), DAY + 60)
    assert uploads.remove_expired() == 1
    assert files(spool) == []


def test_what_a_killed_gateway_was_making_or_removing_is_swept(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    folder = spool.directory / "partial"
    for name in ("a.new", "b.new", "c.gone"):
        (folder / name).mkdir()
    (folder / "c.gone" / "data").write_bytes(b"x")
    age(folder / "a.new", DAY + 60)
    assert uploads.remove_expired() == 1
    left = {path.name for path in folder.iterdir()} - {data_file(spool).parent.name}
    assert left == {"b.new"}


@pytest.mark.parametrize("what", ["data", "dag.car", "folder"])
def test_links_are_not_followed(
    uploads: PartialUploads, spool: Spool, tmp_path: Path, what: str
) -> None:
    begin(uploads)
    folder = data_file(spool).parent
    elsewhere = tmp_path / "elsewhere"
    moved = folder if what == "folder" else folder / what
    moved.rename(elsewhere)
    moved.symlink_to(elsewhere)
    fresh = PartialUploads(spool, expires_s=DAY)
    with pytest.raises((NotFoundError, StorageError)):
        fresh.find("ann", DAG.root)
    with pytest.raises((NotFoundError, StorageError)):
        send(fresh, 0, CONTENT)
    if what != "folder":
        age(elsewhere, 9 * DAY)
    fresh.remove_expired()
    assert elsewhere.exists()
    if elsewhere.name == "data":
        assert elsewhere.stat().st_blocks == 0


@pytest.mark.parametrize("what", ["data", "dag.car"])
@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_an_upload_that_is_damaged_on_disk_begins_anew(
    uploads: PartialUploads, spool: Spool, what: str, damage: str
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    path = data_file(spool).parent / what
    path.unlink()
    if damage == "empty":
        path.touch()
    fresh = PartialUploads(spool, expires_s=DAY)
    with pytest.raises(NotFoundError):
        fresh.find("ann", DAG.root)
    again = begin(fresh)
    assert (again.created, again.missing) == (True, ((0, SIZE),))


def test_a_lock_of_a_killed_publisher_is_gone(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    code = (
        "import fcntl, os, sys, signal\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(fd, fcntl.LOCK_SH)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(data_file(spool))], check=False)
    uploads.forget("ann", DAG.root)
    assert files(spool) == []


def test_many_may_begin_and_send_the_same_at_once(
    uploads: PartialUploads, spool: Spool
) -> None:
    async def one(start: int) -> None:
        await asyncio.to_thread(begin, uploads)
        async with uploads.open_part("ann", DAG.root, start, SIZE - start) as writer:
            for at in range(start, SIZE, 65536):
                await writer.write(CONTENT[at : at + 65536])
            await writer.finish()

    async def run() -> None:
        await asyncio.gather(*(one(start % 3 * MIB) for start in range(8)))

    asyncio.run(run())
    assert missing(uploads) == ()
    assert len(files(spool)) == 2


def test_the_lock_is_free_after_publishing_failed(
    uploads: PartialUploads, spool: Spool
) -> None:
    begin(uploads)
    send(uploads, 0, CONTENT)
    with pytest.raises(StorageError), uploads.complete("ann", DAG.root):
        raise StorageError("down")
    with data_file(spool).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_cids_are_told_apart(uploads: PartialUploads) -> None:
    begin(uploads)
    other = dag_of(CONTENT[: 2 * MIB])
    with pytest.raises(NotFoundError):
        uploads.find("ann", other.root)
    assert isinstance(other.root, CID)
    assert uploads.begin("ann", other.root, other.sidecar() or b"").created
