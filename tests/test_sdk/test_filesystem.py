from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.fakes.fake_gateway import FakeGateway, InMemoryTransport, flip
from tests.test_sdk.conftest import MIB, cached_files, content_of
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import IntegrityError, TransportError
from vision_o3.sdk.retry import RetryPolicy

fsspec = pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")

from vision_o3.sdk.filesystem import VisionO3FileSystem  # noqa: E402 - needs fsspec

MODEL = content_of(MIB + 7)
FILES = {
    "train/stop/001.jpg": b"a picture",
    "train/stop/002.jpg": content_of(MIB + 1),
    "train/list.txt": b"one\ntwo\n",
    "readme": b"hello",
}
WRITES: Dict[str, List[Any]] = {
    "cp_file": ["datasets/signs@1", "models/x"],
    "makedirs": ["models/x"],
    "mkdir": ["models/x"],
    "mv": ["models/m@1", "models/x"],
    "pipe_file": ["models/x", b"bytes"],
    "pipe": ["models/x", b"bytes"],
    "put_file": [__file__, "models/x"],
    "put": [__file__, "models/x"],
    "rm": ["models/m@1"],
    "rm_file": ["models/m@1"],
    "rmdir": ["datasets/signs@1"],
    "touch": ["models/x"],
    "write_text": ["models/x", "text"],
}


@pytest.fixture
def files(gateway: FakeGateway, tmp_path: Path) -> VisionO3FileSystem:
    gateway.publish("m", b"before")
    gateway.publish("m", MODEL)
    gateway.publish_archive("signs", FILES)
    gateway.publish("list", b"{}", "datasets", format="json")
    return VisionO3FileSystem(
        gateway.url,
        cache_dir=tmp_path / "cache",
        transport=InMemoryTransport({gateway.url: gateway}),
        retries=RetryPolicy(attempts=1),
        skip_instance_cache=True,
    )


def test_urls_are_opened_by_fsspec(
    served: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish("m", b"before")
    served.publish("m", MODEL)
    served.publish_archive("signs", FILES)
    monkeypatch.setenv("VISION_O3_URL", served.url)
    monkeypatch.setenv("VISION_O3_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation(
        "vision-o3", "vision_o3.sdk.filesystem.VisionO3FileSystem"
    )
    VisionO3FileSystem.clear_instance_cache()  # it does not look at the environment
    for url, content in [
        ("vision-o3://models/m@1", b"before"),
        ("vision-o3://models/m", MODEL),
        ("vision-o3://datasets/signs@1", served.published["datasets"][0].content),
        ("vision-o3://datasets/signs@1/train/stop/001.jpg", b"a picture"),
    ]:
        with fsspec.open(url) as file:
            assert file.read() == content
    with fsspec.open("vision-o3://datasets/signs@1/train/list.txt", "r") as text:
        assert list(text) == ["one\n", "two\n"]
    store = str(tmp_path / "simple")
    options = {"simplecache": {"cache_storage": store}}
    with fsspec.open("simplecache::vision-o3://models/m@1", **options) as file:
        assert file.read() == b"before"
    with fsspec.open("simplecache::vision-o3://datasets/signs@1", **options) as file:
        assert file.read() == served.published["datasets"][0].content


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ["models", "datasets"]),
        ("vision-o3://", ["models", "datasets"]),
        ("models", ["models/m@2"]),
        ("datasets/", ["datasets/signs@1", "datasets/list@1"]),
        ("models/m@1", ["models/m@1"]),
        ("datasets/list@1", ["datasets/list@1"]),
        ("datasets/signs@1", ["datasets/signs@1/readme", "datasets/signs@1/train"]),
        (
            "datasets/signs/train/stop",
            [f"datasets/signs/train/stop/00{n}.jpg" for n in (1, 2)],
        ),
        ("datasets/signs@1/readme", ["datasets/signs@1/readme"]),
    ],
)
def test_ls(files: VisionO3FileSystem, path: str, expected: List[str]) -> None:
    assert sorted(files.ls(path, detail=False)) == sorted(expected)
    assert sorted(each["name"] for each in files.ls(path)) == sorted(expected)
    for entry in files.ls(path):
        known = files.info(entry["name"])
        assert {**known, **entry} == known


def test_info_says_size_type_and_cid(files: VisionO3FileSystem) -> None:
    whole = files.info("models/m@2")
    assert (whole["size"], whole["type"], whole["version"]) == (len(MODEL), "file", 2)
    assert whole["cid"] == files.ukey("models/m@2") == str(cid_of_bytes(MODEL))
    member = files.info("datasets/signs@1/readme")
    assert (member["size"], member["type"]) == (5, "file")
    assert member["cid"] == str(cid_of_bytes(b"hello"))
    assert files.info("datasets/signs@1/train")["type"] == "directory"
    assert files.created("models/m@2") == files.modified("models/m@2")
    assert files.checksum("models/m@1") != files.checksum("models/m@2")


def test_walk_and_find_go_through_archives(files: VisionO3FileSystem) -> None:
    root = "datasets/signs@1"
    assert files.find(root) == sorted(f"{root}/{path}" for path in FILES)
    walked = [(path, sorted(folders), sorted(n)) for path, folders, n in files.walk("")]
    assert (f"{root}/train", ["stop"], ["list.txt"]) in walked
    assert ("models", [], ["m@2"]) in walked
    assert files.glob(f"{root}/train/**/*.jpg") == [
        f"{root}/train/stop/001.jpg",
        f"{root}/train/stop/002.jpg",
    ]
    assert files.du(root) == sum(map(len, FILES.values()))


def test_cat_reads_all_or_a_part(files: VisionO3FileSystem) -> None:
    assert files.cat("models/m@2") == MODEL
    assert files.cat_file("models/m@2", 5, 9) == MODEL[5:9]
    assert files.cat_file("models/m@2", -9, -5) == MODEL[-9:-5]
    found = files.cat("datasets/signs@1/train", recursive=True, on_error="omit")
    assert found == {
        f"datasets/signs@1/{path}": content
        for path, content in FILES.items()
        if path.startswith("train/")
    }


@pytest.mark.parametrize("path", ["", "models", "datasets/signs@1/train"])
def test_folder_is_not_opened(files: VisionO3FileSystem, path: str) -> None:
    with pytest.raises(IsADirectoryError, match="This is a folder"):
        files.open(path)


def test_open_file_knows_its_size_and_can_be_sought(files: VisionO3FileSystem) -> None:
    with files.open("models/m@2") as file:
        assert file.size == len(MODEL)
        file.seek(-7, 2)
        assert file.read() == MODEL[-7:]
        assert not file.writable()


def test_get_copies_files_archives_and_folders(
    files: VisionO3FileSystem, gateway: FakeGateway, tmp_path: Path
) -> None:
    files.get("models/m@1", str(tmp_path / "m.onnx"))
    assert (tmp_path / "m.onnx").read_bytes() == b"before"
    files.get("datasets/signs@1", str(tmp_path / "signs.zip"))
    archive = gateway.published["datasets"][0].content
    assert (tmp_path / "signs.zip").read_bytes() == archive
    files.get("datasets/signs@1", str(tmp_path / "signs"), recursive=True)
    for path, content in FILES.items():
        assert (tmp_path / "signs" / path).read_bytes() == content


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("models/m", True),
        ("models/m@2", True),
        ("datasets/signs@1/train", True),
        ("datasets/signs@1/train/stop/001.jpg", True),
        ("models/m@3", False),
        ("models/none", False),
        ("models/UPPER", False),
        ("models/m@x", False),
        ("models/m@1/member", False),
        ("datasets/signs@1/none", False),
        ("datasets/signs@1/readme/below", False),
        ("datasets/signs@1/../x", False),
        ("datasets/list@1/member", False),
        ("elsewhere/m", False),
    ],
)
def test_exists(files: VisionO3FileSystem, path: str, there: bool) -> None:
    assert files.exists(path) == there
    assert files.isfile(path) == (there and not path.endswith("train"))
    if not there:
        for ask in (files.info, files.ls, files.open):
            with pytest.raises(FileNotFoundError) as caught:
                ask(path)
            assert path in str(caught.value)


@pytest.mark.parametrize("ask", ["exists", "isfile", "info", "open"])
def test_silence_is_not_taken_for_absence(
    tmp_path: Path, ask: str, gateway: FakeGateway
) -> None:
    files = VisionO3FileSystem(
        "http://elsewhere.test",
        cache_dir=tmp_path / "cache",
        transport=InMemoryTransport({gateway.url: gateway}),
        retries=RetryPolicy(attempts=1),
        skip_instance_cache=True,
    )
    with pytest.raises(TransportError):
        getattr(files, ask)("models/m")


@pytest.mark.parametrize("name", sorted(WRITES))
def test_writing_is_refused(files: VisionO3FileSystem, name: str) -> None:
    with pytest.raises(OSError, match="can only be read"):
        getattr(files, name)(*WRITES[name])


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b", "w", "xb"])
def test_opening_for_writing_is_refused(files: VisionO3FileSystem, mode: str) -> None:
    with pytest.raises(OSError, match="can only be read"):
        files.open("models/m@1", mode)


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("models/m@2", "/download"),
        ("datasets/signs@1/readme", "/files/readme"),
    ],
)
def test_wrong_bytes_are_never_read(
    files: VisionO3FileSystem,
    gateway: FakeGateway,
    tmp_path: Path,
    path: str,
    ending: str,
) -> None:
    gateway.lie(ending, flip(3), times=99)
    with pytest.raises(IntegrityError):
        files.open(path)
    assert not [p for p in cached_files(tmp_path) if p.name in ("m.onnx", "readme")]


def test_what_was_read_before_needs_no_network(
    files: VisionO3FileSystem, gateway: FakeGateway
) -> None:
    assert files.cat("datasets/signs@1/readme") == b"hello"
    before = len(gateway.seen)
    assert files.cat("datasets/signs@1/readme") == b"hello"
    assert files.isdir("datasets/signs@1/train")
    assert len(gateway.seen) == before


def test_file_system_can_be_pickled(served: FakeGateway, tmp_path: Path) -> None:
    served.publish("m", b"abc")
    files = VisionO3FileSystem(served.url, cache_dir=str(tmp_path), connections=2)
    assert files.cat("models/m") == b"abc"
    again = pickle.loads(pickle.dumps(files))  # noqa: S301 - our own
    assert again.cat("models/m@1") == b"abc"
