"""Single files of archives: right bytes or a clear error, and nothing left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.fakes.fake_gateway import (
    Answer,
    FakeGateway,
    InMemoryTransport,
    Lie,
    body,
    chunked,
    cut,
    drop,
    drop_unanswered,
    endless,
    extra,
    flip,
    header,
    manifest_of,
    nothing,
    refuse,
    whole,
)
from tests.test_sdk.conftest import MIB, MakeClient, cached_files, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk import dataset_files
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.transport import HTTPTransport

OFFLINE = InMemoryTransport({})
LARGE = content_of(3 * MIB + 12345)
FILES: Dict[str, bytes] = {
    "images/train/0001.jpg": content_of(1000),
    'odd/größe "1" 100%?#.tar.gz': b"odd",
    "empty.txt": b"",
    "leaf.bin": content_of(MIB),
    "large.bin": LARGE,
}


@pytest.fixture
def dataset(gateway: FakeGateway) -> Dict[str, Any]:
    return gateway.publish_archive("d", FILES)


@pytest.fixture(params=["memory", "loopback"])
def any_client(
    request: pytest.FixtureRequest, gateway: FakeGateway, make_client: MakeClient
) -> Any:
    if request.param == "memory":
        yield make_client()
        return
    transport = HTTPTransport(read_timeout_s=1)
    with gateway.serving(), make_client(transport=transport) as client:
        yield client


def kept(tmp_path: Path) -> List[str]:
    """Return the names of what the cache holds, but for manifests."""
    files = cached_files(tmp_path / "cache")
    return [path.name for path in files if path.name != "manifest.json"]


# Manifests


def test_manifest_lists_what_the_archive_has(
    client: VisionO3Client, dataset: Dict[str, Any]
) -> None:
    manifest = client.get_dataset_manifest("d")
    assert [entry.path for entry in manifest.files] == sorted(FILES)
    assert str(cid_of_bytes(manifest.content)) == dataset["manifest_cid"]
    for entry in manifest.files:
        assert entry.cid == cid_of_bytes(FILES[entry.path])
        assert entry.size == len(FILES[entry.path])


@pytest.mark.usefixtures("dataset")
def test_a_known_manifest_needs_no_network(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    client = make_client()
    client.get_dataset_info("d")
    first = client.get_dataset_manifest("d", 1)
    offline = make_client(transport=OFFLINE)
    assert offline.get_dataset_manifest("d", 1).content == first.content
    assert offline.get_dataset_manifest("d").content == first.content
    assert gateway.count("/manifest") == 1


@pytest.mark.usefixtures("dataset")
def test_a_rotten_manifest_is_fetched_anew(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    make_client().get_dataset_manifest("d")
    (path,) = (tmp_path / "cache").rglob("manifest.json")
    path.write_bytes(manifest_of({"other": b""}))
    assert len(make_client().get_dataset_manifest("d").files) == len(FILES)
    assert gateway.count("/manifest") == 2


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    "lies",
    [
        [flip(20)],
        [cut(1)],
        [extra(b" ")],
        [body(manifest_of({"other": b"x"}))],
        [flip(0), cut(3)],
        [drop(100), drop_unanswered],
        [header("Content-Length", "999999")],
        [refuse(503, "storage_unavailable")],
    ],
)
def test_manifest_survives_a_bad_moment(
    gateway: FakeGateway, client: VisionO3Client, lies: List[Lie]
) -> None:
    gateway.lie("/manifest", *lies)
    assert len(client.get_dataset_manifest("d").files) == len(FILES)
    assert gateway.count("/manifest") == len(lies) + 1


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    "lie", [flip(20), body(manifest_of({"other": b"x"})), body(b"")]
)
def test_a_wrong_manifest_is_never_used(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, lie: Lie
) -> None:
    gateway.lie("/manifest", lie, times=99)
    for use in (
        lambda: client.get_dataset_manifest("d"),
        lambda: client.download_dataset_file("d", "empty.txt"),
        lambda: client.extract_dataset("d", tmp_path / "out"),
    ):
        with pytest.raises(errors.DigestMismatchError):
            use()
    assert cached_files(tmp_path / "cache") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("dataset")
def test_an_endless_manifest_is_left(
    gateway: FakeGateway,
    client: VisionO3Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset_files, "MAX_MANIFEST_SIZE", 1 << 20)
    gateway.lie("/manifest", endless)
    with pytest.raises(errors.LimitExceededError, match="1048576"):
        client.get_dataset_manifest("d")
    assert cached_files(tmp_path / "cache") == []
    assert gateway.count("/manifest") == 1


def hostile(path: str) -> bytes:
    entry = {
        "cid": str(cid_of_bytes(b"abc")),
        "media_type": "text/plain",
        "path": path,
        "size": 3,
    }
    document = {"files": [entry], "manifest_format": 1}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\..\\evil", "", ".", "a/"],
)
def test_a_manifest_with_an_unsafe_path_is_refused(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, path: str
) -> None:
    gateway.publish_archive("d", {path or "x": b"abc"}, manifest=hostile(path))
    for use in (
        lambda: client.get_dataset_manifest("d"),
        lambda: client.extract_dataset("d", tmp_path / "out"),
        lambda: client.extract_dataset("d", tmp_path / "out", paths=["*"]),
    ):
        with pytest.raises(errors.MalformedBlockError):
            use()
    with pytest.raises(errors.InvalidPathError):
        client.download_dataset_file("d", path)
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "out").exists()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("kind", ["json", "xml"])
def test_what_is_no_archive_has_no_files(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, kind: str
) -> None:
    gateway.publish("d", b"{}", "datasets", format=kind)
    for use in (
        lambda: client.get_dataset_manifest("d"),
        lambda: client.download_dataset_file("d", "a"),
        lambda: client.extract_dataset("d", tmp_path / "out"),
    ):
        with pytest.raises(errors.NotFoundError, match=f"one .{kind} file"):
            use()
    assert gateway.count("/manifest") == 0


def test_a_manifest_that_changed_is_refused(
    gateway: FakeGateway, client: VisionO3Client, dataset: Dict[str, Any]
) -> None:
    client.get_dataset_info("d")
    dataset["manifest_cid"] = None
    with pytest.raises(errors.IntegrityError, match="Versions never change"):
        client.get_dataset_info("d")
    assert gateway.count("/manifest") == 0


# One file


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("path", FILES)
def test_fetches_one_file_and_no_more(
    gateway: FakeGateway, any_client: VisionO3Client, path: str
) -> None:
    found = any_client.download_dataset_file("d", path, 1)
    assert found.read_bytes() == FILES[path]
    assert found.name == path.rpartition("/")[2]
    assert found.parent.name == str(cid_of_bytes(FILES[path]))
    requests = len(gateway.seen)
    assert any_client.download_dataset_file("d", path, 1) == found
    assert len(gateway.seen) == requests
    assert gateway.count("/download") == 0
    with any_client.open_dataset_file("d", path, 1) as file:
        assert file.read() == FILES[path]


@pytest.mark.usefixtures("dataset")
def test_a_known_file_needs_no_network(make_client: MakeClient) -> None:
    path = make_client().download_dataset_file("d", "large.bin")
    offline = make_client(transport=OFFLINE)
    assert offline.download_dataset_file("d", "large.bin", 1) == path
    assert offline.download_dataset_file("d", "large.bin") == path
    with pytest.raises(errors.TransportError):
        offline.download_dataset_file("d", "leaf.bin", 1)


def test_two_files_of_one_content_are_fetched_once(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish_archive("d", {"a/1.txt": b"same", "b/2.txt": b"same"})
    first = client.download_dataset_file("d", "a/1.txt")
    second = client.download_dataset_file("d", "b/2.txt")
    assert (first.name, second.name) == ("1.txt", "2.txt")
    assert first.parent == second.parent
    assert gateway.count("/1.txt") == 1
    assert gateway.count("/2.txt") == 0


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("none.txt", errors.NotFoundError),
        ("images", errors.NotFoundError),
        ("../x", errors.InvalidPathError),
        ("/x", errors.InvalidPathError),
        ("", errors.InvalidPathError),
    ],
)
def test_no_such_file(
    gateway: FakeGateway, client: VisionO3Client, path: str, error: Any
) -> None:
    with pytest.raises(error):
        client.download_dataset_file("d", path)
    assert not any("/files/" in seen.path for seen in gateway.seen)


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("path", ["images/train/0001.jpg", "large.bin"])
@pytest.mark.parametrize(
    "lies",
    [
        [flip(500)],
        [flip(0), flip(999)],
        [cut(1)],
        [extra(b"x")],
        [body(b"")],
        [body(FILES["leaf.bin"])],
        [drop(0)],
        [drop(700), drop(10), flip(1)],
        [drop_unanswered, refuse(503, "storage_unavailable")],
        [chunked],
        [header("Content-Length", "5")],
    ],
)
def test_one_file_survives_a_bad_moment(
    gateway: FakeGateway, any_client: VisionO3Client, path: str, lies: List[Lie]
) -> None:
    gateway.lie(path.rpartition("/")[2], *lies)
    assert any_client.download_dataset_file("d", path).read_bytes() == FILES[path]


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("path", ["images/train/0001.jpg", "large.bin"])
@pytest.mark.parametrize(
    "lie", [flip(500), body(LARGE[:-1] + b"x"), cut(1), extra(b"x"), body(b"")]
)
def test_wrong_bytes_are_never_visible(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, path: str, lie: Lie
) -> None:
    gateway.lie(path.rpartition("/")[2], lie, times=99)
    with pytest.raises(errors.IntegrityError):
        client.download_dataset_file("d", path)
    assert kept(tmp_path) == []
    assert gateway.count(path.rpartition("/")[2]) == 3
    with pytest.raises(errors.IntegrityError):
        client.extract_dataset("d", tmp_path / "out", paths=[path])
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


@pytest.mark.usefixtures("dataset")
def test_other_files_bytes_are_refused(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    def lie(answer: Answer) -> None:
        answer.body = LARGE[-MIB:]
        answer.chunked = True

    gateway.lie("leaf.bin", lie, times=99)
    with pytest.raises(errors.DigestMismatchError):
        client.download_dataset_file("d", "leaf.bin")
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("dataset")
def test_goes_on_where_the_link_broke(
    gateway: FakeGateway, any_client: VisionO3Client
) -> None:
    gateway.lie("large.bin", drop(MIB + 5), drop(100_000), drop_unanswered)
    found = any_client.download_dataset_file("d", "large.bin")
    assert found.read_bytes() == LARGE
    asked = [s for s in gateway.seen if s.path.endswith("large.bin")]
    ranges = [seen.headers.get("range", "") for seen in asked]
    starts = [int(text[len("bytes=") :].partition("-")[0] or 0) for text in ranges]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] > MIB // 2
    assert all(text.endswith(f"-{len(LARGE) - 1}") for text in ranges if text)


@pytest.mark.usefixtures("dataset")
def test_a_server_without_ranges_is_understood(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.lie("large.bin", drop(2 * MIB), whole(LARGE))
    assert client.download_dataset_file("d", "large.bin").read_bytes() == LARGE


@pytest.mark.usefixtures("dataset")
def test_a_source_that_drips_is_left(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    gateway.lie("large.bin", drop(10), times=999)
    with pytest.raises(errors.TransportError):
        client.download_dataset_file("d", "large.bin")
    assert gateway.count("large.bin") == 5
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("dataset")
def test_each_mebibyte_counts_as_progress(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    lies = [drop_unanswered] * 4 + [drop(MIB + 1)] + [drop_unanswered] * 3 + [nothing]
    gateway.lie("large.bin", *lies)
    assert client.download_dataset_file("d", "large.bin").read_bytes() == LARGE


@pytest.mark.usefixtures("dataset")
def test_damage_in_the_gateways_store_is_not_asked_for_again(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.lie("large.bin", refuse(500, "digest_mismatch"), times=9)
    with pytest.raises(errors.DigestMismatchError):
        client.download_dataset_file("d", "large.bin")
    assert gateway.count("large.bin") == 1


@pytest.mark.parametrize("size", [3, MIB + 1, 2**63 - 1])
def test_a_manifest_that_lies_about_a_size(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, size: int
) -> None:
    for content in (b"abcd", LARGE):
        manifest = manifest_of({"f": content}).replace(
            b'"size":%d' % len(content), b'"size":%d' % size
        )
        gateway.publish_archive("d", {"f": content}, manifest=manifest)
        with pytest.raises((errors.IntegrityError, errors.StorageFullError)):
            client.download_dataset_file("d", "f")
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("dataset")
def test_tells_progress_of_one_file(make_client: MakeClient) -> None:
    seen: List[Tuple[int, int]] = []
    client = make_client(progress=lambda *pair: seen.append(pair))
    client.download_dataset_file("d", "large.bin")
    size = len(LARGE)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {size}


@pytest.mark.usefixtures("dataset")
def test_a_file_that_another_process_drops_is_fetched_again(
    gateway: FakeGateway, client: VisionO3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client._files(allow_blocked=False).download
    dropped: List[Path] = []

    def drop_once(*arguments: Any) -> Path:
        path = honest(*arguments)
        if not dropped:
            dropped.append(path)
            path.unlink()
        return path

    monkeypatch.setattr(client._files(allow_blocked=False), "download", drop_once)
    with client.open_dataset_file("d", "leaf.bin") as file:
        assert file.read() == FILES["leaf.bin"]
    assert gateway.count("leaf.bin") == 2


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("fault", ["gone", "unreadable"])
def test_a_file_that_cannot_be_opened(
    client: VisionO3Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "none" if fault == "gone" else tmp_path
    monkeypatch.setattr(client._files(allow_blocked=False), "download", lambda *_: path)
    with pytest.raises(errors.CacheError):
        client.open_dataset_file("d", "leaf.bin")


def test_many_small_files_need_one_look_at_the_cache(
    gateway: FakeGateway, client: VisionO3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"labels/{number}.txt": b"%d" % number for number in range(50)}
    gateway.publish_archive("d", files)
    looks = 0
    honest = client._cache.entries

    def look() -> Any:
        nonlocal looks
        looks += 1
        return honest()

    monkeypatch.setattr(client._cache, "entries", look)
    for path, content in files.items():
        assert client.download_dataset_file("d", path, 1).read_bytes() == content
    assert looks == 1
