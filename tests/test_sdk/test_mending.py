from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from tests.fakes.fake_gateway import FakeGateway, InMemoryTransport
from tests.test_sdk.conftest import MIB, MakeClient, content_of
from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk import cli
from vision_o3.sdk.client import VisionO3Client

OFFLINE = InMemoryTransport({})
NOBODY = 65534
CONTENT = content_of(5 * MIB + 7)


def rot(path: Path, at: int = 2 * MIB + 5) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"!")


def states(client: VisionO3Client, *, repair: bool = False) -> List[Tuple[str, str]]:
    checked = client.repair_cache() if repair else client.verify_cache()
    return sorted((each.path.name, each.state) for each in checked)


def cids(client: VisionO3Client) -> List[str]:
    return [entry.cid for entry in client._cache.entries()]


# Verify and repair


@pytest.mark.parametrize("found_by", ["repair", "verify", "download"])
@pytest.mark.parametrize("how", ["name", "cid", "dataset"])
def test_repair_fetches_the_wrong_leaf_alone(
    gateway: FakeGateway, client: VisionO3Client, found_by: str, how: str
) -> None:
    collection = "datasets" if how == "dataset" else "models"
    cid = gateway.publish("m", CONTENT, collection)["cid"]
    path = {
        "name": lambda: client.download_model("m"),
        "cid": lambda: client.download_model_by_cid(cid),
        "dataset": lambda: client.download_dataset("m", 1),
    }[how]()
    rot(path)
    gateway.body_bytes, before = 0, len(gateway.seen)
    if found_by == "verify":
        assert states(client) == [(path.name, "rotten")]
        assert not path.exists()
    if found_by == "download":
        assert client._cache.find(CID.parse(cid), path.name) is None
    assert states(client, repair=True) == [(path.name, "mended")]
    assert path.read_bytes() == CONTENT
    assert gateway.body_bytes == MIB
    asked = [seen.path.rpartition("/")[2] for seen in gateway.seen[before:]]
    assert asked == ["dag", "download"]
    assert states(client) == [(path.name, "right")]


def test_a_rotten_file_is_not_returned_but_mended_by_the_next_download(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", CONTENT)
    rot(client.download_model("m"))
    gateway.body_bytes = 0
    assert client.download_model("m").read_bytes() == CONTENT
    assert gateway.body_bytes == MIB
    assert client.repair_cache()[0].state == "right"


def test_repair_brings_back_all_names(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("a", CONTENT)
    gateway.publish("b", CONTENT)
    paths = [client.download_model(name) for name in ("a", "b")]
    rot(paths[0])
    found = [("a.onnx", "mended"), ("b.onnx", "mended")]
    assert states(client, repair=True) == found
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]


def test_files_that_were_fetched_one_by_one_are_removed(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    files = {"small.txt": b"small", "large.bin": content_of(2 * MIB, seed=9)}
    gateway.publish_archive("d", files)
    for name in files:
        rot(client.download_dataset_file("d", name), 0)
    found = states(client, repair=True)
    removed = [("large.bin", "removed"), ("small.txt", "removed")]
    assert found == sorted([*removed, ("manifest.json", "right")])
    assert states(client, repair=True) == [("manifest.json", "right")]
    assert list((client._cache.directory / "partial").iterdir()) == []
    assert client.download_dataset_file("d", "small.txt").read_bytes() == b"small"


def test_what_cannot_be_mended_says_why_and_the_rest_is(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("a", CONTENT)
    gateway.publish("b", b"small")
    for name in ("a", "b"):
        rot(client.download_model(name), 0)
    gateway.published["models"].pop(0)  # retired
    checked = {each.path.parent.name: each for each in client.repair_cache()}
    gone, mended = (checked[str(cid_of_bytes(c))] for c in (CONTENT, b"small"))
    assert (gone.state, mended.state) == ("rotten", "mended")
    assert isinstance(gone.error, errors.NotFoundError)
    assert client.download_model("b").read_bytes() == b"small"


def test_an_unreadable_file_is_fetched_anew(
    gateway: FakeGateway,
    client: VisionO3Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway.publish("m", CONTENT)
    path = client.download_model("m")
    bad = path.stat().st_ino
    read = os.open

    def refuse(name: Any, *more: Any, **options: Any) -> int:
        if os.path.lexists(name) and Path(name).lstat().st_ino == bad:
            raise OSError(errno.EIO, "The sector is bad")
        return read(name, *more, **options)

    os.link(path, tmp_path / "kept")  # so that no new file gets the number
    monkeypatch.setattr(os, "open", refuse)
    assert states(client) == [("m.onnx", "unreadable")]
    assert states(client, repair=True) == [("m.onnx", "mended")]
    assert path.stat().st_ino != bad


def test_a_check_ends_when_it_is_told_to(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", CONTENT)
    path = client.download_model("m")
    rot(path)
    for check in (client.verify_cache, client.repair_cache):
        with pytest.raises(errors.DeadlineExceededError), client.bounded(0.0):
            check()
    assert path.exists()


# Pins


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_pinned_version_stays(
    gateway: FakeGateway, make_client: MakeClient, kind: str
) -> None:
    for number in range(3):
        gateway.publish("m", bytes([number]) * 3000, f"{kind}s")
    client = make_client(max_cache_bytes=3000)
    pin, unpin = (getattr(client, f"{verb}_{kind}") for verb in ("pin", "unpin"))
    download = getattr(client, f"download_{kind}")
    first = pin("m", 1)
    assert (first.version, pin("m").version) == (1, 3)
    for number in (1, 2, 3):
        download("m", number)
    download("m", 2)
    assert set(cids(client)) > {first.cid, str(cid_of_bytes(b"\2" * 3000))}
    client.prune_cache()
    assert len(cids(client)) == 2
    offline = make_client(transport=OFFLINE, max_cache_bytes=3000)
    undone = getattr(offline, f"unpin_{kind}")("m")
    assert [info.version for info in undone] == [1, 3]
    assert unpin("m", 1) == []
    assert client.prune_cache() == 3000


def test_a_pinned_dataset_keeps_its_manifest(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish_archive("d", {"a.txt": b"a"})
    client.pin_dataset("d")
    client.get_dataset_manifest("d")
    client.download_dataset_file("d", "a.txt")
    client.prune_cache(0)
    assert [entry.files[0].name for entry in client._cache.entries()] == [
        "manifest.json"
    ]


def test_a_cid_can_be_pinned_without_a_name(make_client: MakeClient) -> None:
    client = make_client(transport=OFFLINE)
    cid = str(cid_of_bytes(b"abc"))
    client.pin(cid)
    assert (client.unpin(cid), client.unpin(cid)) == (True, False)
    for refuses in (client.pin, client.unpin):
        with pytest.raises(errors.InvalidCIDError):
            refuses("Qm")


def test_nothing_is_pinned_or_unpinned_that_is_not_there(
    client: VisionO3Client,
) -> None:
    for refuses in (client.pin_model, client.unpin_model, client.pin_dataset):
        with pytest.raises(errors.NotFoundError):
            refuses("none")


# A full disk


def test_a_disk_that_fills_up_is_told_and_the_download_goes_on_later(
    gateway: FakeGateway, client: VisionO3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.publish("other", b"abc")
    other = client.download_model("other")
    gateway.publish("m", CONTENT)
    write, lock = os.pwrite, threading.Lock()
    written: List[int] = []

    def fill_up(file: int, piece: bytes, offset: int) -> int:
        with lock:
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(len(piece))
        return write(file, piece, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill_up)
        with pytest.raises(errors.StorageFullError, match="Make room"):
            client.download_model("m")
    assert other.read_bytes() == b"abc"
    assert states(client) == [("other.onnx", "right")]
    gateway.body_bytes = 0
    assert client.download_model("m").read_bytes() == CONTENT
    assert gateway.body_bytes == len(CONTENT) - sum(written)


# A cache that is read-only


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a directory whose files another user may read at most."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def test_a_read_only_cache_is_checked_and_used(
    gateway: FakeGateway, make_client: MakeClient, shared: Path
) -> None:
    cache_dir = shared / "cache"
    client = make_client(cache_dir=cache_dir)
    gateway.publish("right", b"abc")
    gateway.publish("rotten", CONTENT)
    path, rotten = (client.download_model(name) for name in ("right", "rotten"))
    client.pin_model("right")
    rot(rotten)
    found = [("right.onnx", "right"), ("rotten.onnx", "rotten")]
    with read_only(cache_dir):
        assert client.download_model("right") == path
        assert client.get_model_info("right", 1).version == 1
        assert states(client) == states(client, repair=True) == found
        for refused in (
            lambda: client.download_model("rotten"),
            lambda: client.pin_model("rotten"),
            lambda: client.unpin_model("right"),
            lambda: client.prune_cache(0),
            client.clear_cache,
        ):
            with pytest.raises(errors.CacheError):
                refused()
        assert client.get_cache_size() == len(CONTENT) + 3
    assert states(client) == found


class read_only:  # noqa: N801 - as a function is used
    """Let nothing below a directory be written; root becomes somebody else."""

    def __init__(self, directory: Path) -> None:
        self._modes: Dict[Path, int] = {
            path: path.stat().st_mode for path in [directory, *directory.rglob("*")]
        }
        self._user = os.geteuid()

    def __enter__(self) -> None:
        for path, mode in self._modes.items():
            path.chmod(mode & 0o555)
        if self._user == 0:
            os.seteuid(NOBODY)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self._user)
        for path, mode in self._modes.items():
            path.chmod(mode)


# What is known without a network


@pytest.fixture(params=["offline", "unreachable"])
def away(request: pytest.FixtureRequest, make_client: MakeClient) -> VisionO3Client:
    """Return a client that has no network, by order or by bad luck."""
    if request.param == "offline":
        return make_client(offline=True)
    return make_client(transport=OFFLINE)


def test_without_a_network_what_is_cached_serves(
    gateway: FakeGateway,
    client: VisionO3Client,
    away: VisionO3Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cid = gateway.publish("m", CONTENT)["cid"]
    path = client.download_model("m")
    asked = len(gateway.seen)
    assert away.download_model("m", 1) == path
    assert away.download_model_by_cid(cid) == path
    assert not away.get_model_info("m", 1).stale
    assert "latest.stale" not in caplog.text
    assert away.download_model("m") == path
    assert away.get_model_info("m").stale
    assert "latest.stale" in caplog.text
    assert len(gateway.seen) == asked


def test_what_was_found_by_its_cid_is_known_by_its_version(
    gateway: FakeGateway, client: VisionO3Client, away: VisionO3Client
) -> None:
    cid = gateway.publish("m", b"abc")["cid"]
    path = client.download_model_by_cid(cid)
    assert away.download_model("m", 1) == path


def test_offline_names_what_is_missing(
    gateway: FakeGateway, client: VisionO3Client, make_client: MakeClient
) -> None:
    cid = gateway.publish("m", CONTENT)["cid"]
    gateway.publish_archive("d", {"a.txt": b"a"})
    client.get_model_info("m")
    client.get_dataset_info("d")
    offline = make_client(offline=True)
    missing: Dict[str, Any] = {
        f"Version 1 of m ({cid})": lambda: offline.download_model("m"),
        "Version 2 of m": lambda: offline.get_model_info("m", 2),
        "The latest version of n": lambda: offline.get_model_info("n"),
        f"What has the CID {cid_of_bytes(b'x')}": (
            lambda: offline.download_model_by_cid(str(cid_of_bytes(b"x")))
        ),
        "The list of files of d@1": lambda: offline.get_dataset_manifest("d"),
    }
    for what, ask in missing.items():
        with pytest.raises(errors.OfflineError) as caught:
            ask()
        assert str(caught.value).startswith(f"{what} is not in the cache")
    client.get_dataset_manifest("d")
    with pytest.raises(errors.OfflineError, match=r"^a\.txt \(baf"):
        offline.download_dataset_file("d", "a.txt")


def test_a_damaged_or_misplaced_answer_is_as_none(
    gateway: FakeGateway, client: VisionO3Client, make_client: MakeClient
) -> None:
    gateway.publish("m", b"abc")
    gateway.publish("n", b"def")
    client.get_model_info("n", 1)
    client.get_model_info("m", 1)
    (path,) = client._cache.directory.rglob("m@1.json")
    kept = path.read_text()
    cid = json.loads(kept)["document"]["cid"]
    for damaged in (
        kept.replace(cid, str(cid_of_bytes(b"other"))),
        path.with_name("n@1.json").read_text(),
    ):
        path.write_text(damaged)
        with pytest.raises(errors.OfflineError):
            make_client(offline=True).get_model_info("m", 1)
        assert client.get_model_info("m", 1).cid == cid


@pytest.mark.parametrize("by", ["latest", "cid"])
def test_a_gateway_that_now_says_something_else_is_distrusted(
    gateway: FakeGateway, client: VisionO3Client, by: str
) -> None:
    gateway.publish("m", b"abc")
    path = client.download_model("m", 1)
    gateway.published["models"].clear()
    cid = gateway.publish("m", b"other")["cid"]
    with pytest.raises(errors.IntegrityError, match="Versions never change"):
        client.get_model_info("m") if by == "latest" else (
            client.download_model_by_cid(cid)
        )
    assert client.download_model("m", 1) == path
    assert path.read_bytes() == b"abc"


# Commands


def test_commands_of_the_cache(
    gateway: FakeGateway,
    served: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VISION_O3_URL", served.url)
    monkeypatch.setenv("VISION_O3_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> Tuple[int, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        assert captured.err == "" or "is not what its CID names" in captured.err
        return code, captured.out

    cid = gateway.publish("m", CONTENT)["cid"]
    assert run("cache", "pin", "m") == (0, f"Pinned m@1   {cid}\n")
    path = Path(run("pull", "m")[1].strip())
    assert "Removed 0 B" in run("cache", "prune", "--max-bytes", "0")[1]
    (entry,) = json.loads(run("cache", "ls", "--json")[1])
    assert (entry["cid"], entry["pinned"]) == (cid, True)
    assert run("cache", "verify") == (0, "1 right.\n")
    rot(path)
    code, out = run("cache", "verify")
    assert code == 7
    assert out.startswith(f"rotten   {path}\n0 right, 1 rotten.\n")
    assert "cache repair" in out
    code, out = run("cache", "repair", "--json")
    wrong = {"cid": cid, "path": str(path), "state": "mended", "error": None}
    assert (code, json.loads(out)) == (0, {"right": 0, "wrong": [wrong]})
    rot(path)
    code, out = run("cache", "repair", "--offline")
    assert code == 7
    assert f"rotten   {path}: Version 1 of m" in out
    assert "[offline]" in out
    assert run("cache", "repair")[0] == 0
    assert "Unpinned m@1" in run("cache", "unpin", "m")[1]
    assert run("cache", "unpin", cid) == (0, f"{cid} was not pinned.\n")
    assert run("cache", "pin", cid)[1] == f"Pinned {cid}.\n"
    assert json.loads(run("cache", "unpin", cid, "--json")[1]) == {
        "unpinned": [{"cid": cid}]
    }
    assert json.loads(run("cache", "prune", "--max-bytes", "0", "--json")[1]) == {
        "removed": len(CONTENT)
    }
