"""Archives unpacked: all right files, none outside, nothing of a lie left."""

from __future__ import annotations

import errno
import gzip
import io
import os
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.fake_gateway import FakeGateway, archive_of, flip, manifest_of
from tests.test_sdk.conftest import MIB, MakeClient, content_of
from vision_o3 import errors
from vision_o3.content.manifest import Manifest
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.extraction import Target, unpack
from vision_o3.sdk.versions import DatasetInfo, parse_info

FILES: Dict[str, bytes] = {
    "README.txt": b"read me",
    "images/train/1.jpg": content_of(3000, 1),
    "images/train/2.jpg": content_of(3000, 2),
    "images/val/1.jpg": content_of(3000, 3),
    "images/größe [1].jpg": content_of(100, 4),
    "large.bin": content_of(2 * MIB + 7),
    "labels/empty.txt": b"",
}
KINDS = ["zip", "tar.gz"]


def tree(directory: Path) -> Dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


# All of it


@pytest.mark.parametrize("kind", KINDS)
def test_extracts_everything_with_one_download(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    gateway.publish_archive("d", FILES, kind)
    paths = client.extract_dataset("d", str(out))
    assert tree(out) == FILES
    assert paths == [out / path for path in sorted(FILES)]
    assert gateway.count("/download") == 1
    assert not any("/files/" in seen.path for seen in gateway.seen)
    usual = out / "usual"
    usual.touch()
    assert paths[0].stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_kept_and_needs_no_download(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    gateway.publish_archive("d", FILES, kind)
    before = [path.stat() for path in client.extract_dataset("d", out)]
    client.clear_cache()
    after = [path.stat() for path in client.extract_dataset("d", out)]
    assert [(s.st_ino, s.st_mtime_ns) for s in before] == [
        (s.st_ino, s.st_mtime_ns) for s in after
    ]
    assert gateway.count("/download") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_extraction_is_completed(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    gateway.publish_archive("d", FILES, kind)
    client.extract_dataset("d", out)
    (out / "images/train/1.jpg").unlink()
    (out / "mine.txt").write_text("mine")
    client.extract_dataset("d", out)
    assert tree(out) == {**FILES, "mine.txt": b"mine"}


def test_an_empty_archive_makes_an_empty_directory(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    gateway.publish_archive("d", {})
    assert client.extract_dataset("d", out) == []
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_the_manifest_does_not_list_are_passed_over(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    more = {"../evil": b"x", "/evil": b"x", "first": b"x", **FILES, "z": b"x"}
    gateway.publish_archive("d", FILES, kind, archive=archive_of(more, kind))
    client.extract_dataset("d", out)
    assert tree(out) == FILES
    assert not list(out.parent.parent.rglob("evil"))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_files(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    files = {"a.bin": bytes(48 * MIB), "b.bin": bytes(1)}
    gateway.publish_archive("d", files, kind)
    client.download_dataset("d")
    tracemalloc.start()
    try:
        client.extract_dataset("d", out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB
    assert (out / "a.bin").stat().st_size == 48 * MIB


def test_tells_progress(
    gateway: FakeGateway, make_client: MakeClient, out: Path
) -> None:
    gateway.publish_archive("d", FILES)
    seen: List[Tuple[int, int]] = []
    client = make_client(progress=lambda *pair: seen.append(pair))
    total = sum(map(len, FILES.values()))
    client.extract_dataset("d", out)
    assert seen[-1] == (total, total)
    client.clear_cache()
    seen.clear()
    client.extract_dataset("d", out / "again", paths=["*"])
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert {every for _, every in seen} == {total}


# Parts of it


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["README.txt"], ["README.txt"]),
        (["images/größe [1].jpg"], ["images/größe [1].jpg"]),
        (["images/train/*"], ["images/train/1.jpg", "images/train/2.jpg"]),
        (["images/train"], ["images/train/1.jpg", "images/train/2.jpg"]),
        (["images/train/"], ["images/train/1.jpg", "images/train/2.jpg"]),
        (["*/1.jpg"], ["images/train/1.jpg", "images/val/1.jpg"]),
        (
            ["images/train/?.jpg", "*1.jpg", "README.txt"],
            [
                "README.txt",
                "images/train/1.jpg",
                "images/train/2.jpg",
                "images/val/1.jpg",
            ],
        ),
        (["*.bin", "labels/*"], ["labels/empty.txt", "large.bin"]),
    ],
)
def test_only_what_is_named_is_fetched(
    gateway: FakeGateway,
    client: VisionO3Client,
    out: Path,
    patterns: List[str],
    expected: List[str],
) -> None:
    gateway.publish_archive("d", FILES)
    paths = client.extract_dataset("d", out, 1, patterns)
    assert paths == [out / path for path in expected]
    assert tree(out) == {path: FILES[path] for path in expected}
    assert gateway.count("/download") == 0


def test_a_cached_archive_is_used_for_parts(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    gateway.publish_archive("d", FILES)
    client.download_dataset("d")
    client.extract_dataset("d", out, paths=["images"])
    assert len(tree(out)) == 4
    assert gateway.count("/download") == 1
    assert not any("/files/" in seen.path for seen in gateway.seen)


@pytest.mark.parametrize("pattern", ["none", "*.png", "../*", "", "/"])
def test_a_pattern_of_no_file(
    gateway: FakeGateway, client: VisionO3Client, out: Path, pattern: str
) -> None:
    gateway.publish_archive("d", FILES)
    with pytest.raises(errors.NotFoundError, match="has no file"):
        client.extract_dataset("d", out, paths=["README.txt", pattern])
    assert not out.exists()


def test_files_before_a_wrong_one_are_kept(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    gateway.publish_archive("d", FILES)
    gateway.lie("val/1.jpg", flip(1), times=99)
    with pytest.raises(errors.IntegrityError):
        client.extract_dataset("d", out, paths=["images"])
    assert "images/train/2.jpg" in tree(out)
    assert "images/val/1.jpg" not in tree(out)
    assert all(FILES[path] == content for path, content in tree(out).items())


# What is in the way


@pytest.mark.parametrize("paths", [None, ["*"]])
@pytest.mark.parametrize("other", [b"mine", b"read ME"])
def test_another_file_is_not_replaced_unless_allowed(
    gateway: FakeGateway, client: VisionO3Client, out: Path, paths: Any, other: bytes
) -> None:
    gateway.publish_archive("d", FILES)
    out.mkdir(parents=True)
    (out / "README.txt").write_bytes(other)
    with pytest.raises(errors.AlreadyExistsError, match=r"README\.txt"):
        client.extract_dataset("d", out, paths=paths)
    assert tree(out) == {"README.txt": other}
    assert gateway.count("/download") == 0
    client.extract_dataset("d", out, paths=paths, overwrite=True)
    assert tree(out) == FILES


def test_a_directory_in_the_place_of_a_file_is_never_replaced(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    gateway.publish_archive("d", FILES)
    (out / "README.txt").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(errors.AlreadyExistsError, match="another directory"):
            client.extract_dataset("d", out, overwrite=overwrite)
    assert tree(out) == {}


@pytest.mark.parametrize("options", [{}, {"paths": ["*"]}, {"overwrite": True}])
@pytest.mark.parametrize("at", ["images", "images/train"])
@pytest.mark.parametrize("how", ["link", "dangling", "file"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(
    gateway: FakeGateway,
    client: VisionO3Client,
    out: Path,
    options: Any,
    at: str,
    how: str,
) -> None:
    gateway.publish_archive("d", FILES)
    outside = out.parent.parent / "outside"
    outside.mkdir()
    (out / at).parent.mkdir(parents=True)
    if how == "file":
        (out / at).write_bytes(b"")
    else:
        (out / at).symlink_to(outside if how == "link" else outside / "none")
    with pytest.raises(errors.AlreadyExistsError, match="link or a file"):
        client.extract_dataset("d", out, **options)
    assert list(outside.iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(
    gateway: FakeGateway, client: VisionO3Client, out: Path, tmp_path: Path
) -> None:
    gateway.publish_archive("d", FILES)
    outside = tmp_path / "outside"
    outside.write_bytes(FILES["README.txt"])
    out.mkdir(parents=True)
    (out / "README.txt").symlink_to(outside)
    with pytest.raises(errors.AlreadyExistsError):
        client.extract_dataset("d", out)
    client.extract_dataset("d", out, overwrite=True)
    assert tree(out) == FILES
    outside.unlink()
    assert tree(out) == FILES


def test_the_target_itself_may_be_a_link(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    gateway.publish_archive("d", FILES)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    client.extract_dataset("d", tmp_path / "link")
    assert tree(tmp_path / "real") == FILES


def test_a_link_that_comes_meanwhile_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (entry,) = Manifest(manifest_of({"a/b/c": b"x"})).files
    with Target(tmp_path / "out") as target:
        with target.new_file(entry) as file:
            os.write(file, b"x")
            (tmp_path / "out/a").rename(tmp_path / "out/old")
            (tmp_path / "out/a").symlink_to(outside)
        (other,) = Manifest(manifest_of({"a/d/e": b"x"})).files
        with pytest.raises(errors.AlreadyExistsError), target.new_file(other):
            pass
    assert (tmp_path / "out/old/b/c").read_bytes() == b"x"
    assert list(outside.iterdir()) == []


def test_a_file_that_comes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (entry,) = Manifest(manifest_of({"a": b"x"})).files
    with Target(tmp_path) as target:
        with pytest.raises(errors.AlreadyExistsError), target.new_file(entry):
            (tmp_path / "a").write_bytes(b"mine")
        target.undo()
    assert tree(tmp_path) == {"a": b"mine"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_that_is_a_file_and_a_folder(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str
) -> None:
    gateway.publish_archive("d", {"a": b"1", "a/b": b"2"}, kind)
    with pytest.raises(errors.AlreadyExistsError):
        client.extract_dataset("d", out)
    assert tree(out) in ({"a": b"1"}, {"a/b": b"2"})


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (errno.ENOSPC, errors.StorageFullError),
        (errno.EDQUOT, errors.StorageFullError),
        (errno.EACCES, errors.CacheError),
    ],
)
def test_a_disk_that_refuses(
    gateway: FakeGateway,
    client: VisionO3Client,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: int,
    error: Any,
) -> None:
    gateway.publish_archive("d", FILES)
    client.download_dataset("d")
    client.get_dataset_manifest("d")

    def fail(*_: Any) -> int:
        raise OSError(fault, "No")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(error, match=str(out)):
        client.extract_dataset("d", out)
    assert all(content == b"" for content in tree(out).values())


def test_a_target_that_cannot_be(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    gateway.publish_archive("d", FILES)
    (tmp_path / "file").touch()
    with pytest.raises(errors.CacheError):
        client.extract_dataset("d", tmp_path / "file")
    with pytest.raises(errors.CacheError):
        client.extract_dataset("d", tmp_path / "file" / "below")


# Archives that are not as their manifests say


def changed(**files: bytes) -> Dict[str, bytes]:
    return {
        **FILES,
        **{name.replace("__", "."): value for name, value in files.items()},
    }


def without(path: str) -> Dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name != path}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "files",
    [
        changed(README__txt=b"read ME"),
        changed(README__txt=b"read m"),
        changed(README__txt=b"read me!"),
        changed(README__txt=b""),
        changed(large__bin=bytes(64 * MIB)),
        changed(large__bin=FILES["large.bin"][:-1]),
        without("README.txt"),
        without("labels/empty.txt"),
        {},
    ],
)
def test_an_archive_with_other_files_leaves_nothing(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str, files: Any
) -> None:
    gateway.publish_archive("d", FILES, kind, archive=archive_of(files, kind))
    out.mkdir(parents=True)
    (out / "images").mkdir()
    (out / "mine").write_bytes(b"mine")
    with pytest.raises(errors.IntegrityError):
        client.extract_dataset("d", out)
    assert sorted(path.name for path in out.rglob("*")) == ["images", "mine"]


def test_what_was_right_before_stays_when_the_archive_is_wrong(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    files = {"a/1": b"1", "a/2": b"2", "b/3": b"3"}
    gateway.publish_archive(
        "d", files, archive=archive_of({**files, "b/3": b"x"}, "zip")
    )
    (out / "a").mkdir(parents=True)
    (out / "a/1").write_bytes(b"1")
    with pytest.raises(errors.IntegrityError):
        client.extract_dataset("d", out)
    assert tree(out) == {"a/1": b"1"}
    assert not (out / "b").exists()


def zipped(
    change: Callable[[bytearray], None], method: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as opened:
        opened.writestr("a", b"abc" * 100)
    content = bytearray(stream.getvalue())
    change(content)
    return bytes(content)


def tarred(
    *members: tarfile.TarInfo, tail: bytes = b"", shape: int = tarfile.PAX_FORMAT
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=shape) as opened:
        for member in members:
            opened.addfile(member, io.BytesIO(b"abc" * 100) if member.isreg() else None)
    return gzip.compress(stream.getvalue() + tail)


def member(
    name: str, size: int = 300, kind: bytes = tarfile.REGTYPE, **more: Any
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


def set_at(offset: int, value: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset] = value

    return change


def set_flags(content: bytearray) -> None:
    """Say that the member is encrypted."""
    for start in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[start] |= 1


def set_method(number: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[content.index(b"PK\x03\x04") + 8] = number
        content[content.index(b"PK\x01\x02") + 10] = number

    return change


def endless_tar() -> bytes:
    """A header that says that exabytes follow."""
    header = member("other", size=2**62).tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(header + bytes(1024))


def long_header(kind: bytes) -> bytes:
    """A name of 8 MiB, before the file."""
    header = member("x", size=8 * MIB, kind=kind).tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(header + b"a" * (8 * MIB) + member("a").tobuf() + bytes(2048))


def nested_headers() -> bytes:
    """Headers before headers, deeper than Python's stack."""
    header = member("x", size=11, kind=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
    record = b"11 path=ab\n".ljust(512, b"\0")
    return gzip.compress((header + record) * 3000 + member("a").tobuf() + bytes(2048))


GOOD_TAR = tarred(member("a"))
ZIPS = {
    "empty": b"",
    "no zip": b"x" * 100,
    "cut": zipped(lambda content: content.__delitem__(slice(-30, None))),
    "wrong crc": zipped(set_at(40, 0)),
    "wrong local header": zipped(set_at(0, 0)),
    "wrong name": zipped(set_at(30, ord("b"))),
    "encrypted": zipped(set_flags),
    "bzip2": zipped(lambda _: None, zipfile.ZIP_BZIP2),
    "unknown method": zipped(set_method(99)),
    "not deflated": zipped(set_method(8)),
    "deflate cut": zipped(lambda content: content.__delitem__(slice(35, 45)), 8),
}
TARS = {
    "empty": b"",
    "no gzip": b"x" * 100,
    "empty tar": gzip.compress(b""),
    "no tar": gzip.compress(b"x" * 2048),
    "cut": GOOD_TAR[:-20],
    "cut early": GOOD_TAR[:30],
    "wrong crc": GOOD_TAR[:-8] + bytes(8),
    "cut inside": gzip.compress(gzip.decompress(GOOD_TAR)[:700]),
    "link": tarred(member("a", 0, tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": tarred(member("b"), member("a", 0, tarfile.LNKTYPE, linkname="b")),
    "device": tarred(member("a", 0, tarfile.CHRTYPE)),
    "fifo": tarred(member("a", 0, tarfile.FIFOTYPE)),
    "folder": tarred(member("a", 0, tarfile.DIRTYPE)),
    "exabytes": endless_tar(),
    "long name": long_header(tarfile.GNUTYPE_LONGNAME),
    "long pax": long_header(tarfile.XHDTYPE),
    "nested": nested_headers(),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("zip", name) for name in ZIPS), *(("tar.gz", name) for name in TARS)],
)
def test_a_broken_archive_leaves_nothing(
    gateway: FakeGateway, client: VisionO3Client, out: Path, kind: str, name: str
) -> None:
    archive = (ZIPS if kind == "zip" else TARS)[name]
    files = {"a": b"abc" * 100, "z": b"z"}
    gateway.publish_archive("d", files, kind, archive=archive)
    with pytest.raises(errors.IntegrityError, match="archive of version 1 of d"):
        client.extract_dataset("d", out)
    assert list(out.iterdir()) == []


def test_good_archives_of_the_same_makers_are_extracted(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    """So that the ones above fail for the reason that they name."""
    for number, (kind, archive) in enumerate(
        [
            ("zip", zipped(lambda _: None)),
            ("zip", zipped(lambda _: None, zipfile.ZIP_DEFLATED)),
            ("tar.gz", GOOD_TAR),
            ("tar.gz", tarred(member("./a"), tail=b"junk")),
            (
                "tar.gz",
                gzip.compress(gzip.decompress(GOOD_TAR)[:700])
                + gzip.compress(gzip.decompress(GOOD_TAR)[700:]),
            ),
        ]
    ):
        gateway.publish_archive("d", {"a": b"abc" * 100}, kind, archive=archive)
        client.extract_dataset("d", out / str(number))
        assert tree(out / str(number)) == {"a": b"abc" * 100}


@pytest.mark.parametrize("shape", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_tars(
    gateway: FakeGateway, client: VisionO3Client, out: Path, shape: int
) -> None:
    names = ["é" * 100 + "/" + "x" * 200, "日本/語"]
    archive = tarred(*map(member, names), shape=shape)
    files = dict.fromkeys(names, b"abc" * 100)
    gateway.publish_archive("d", files, "tar.gz", archive=archive)
    client.extract_dataset("d", out)
    assert tree(out) == files


def test_names_in_utf_8_without_the_flag_in_zips(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    name = "größe"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("gr__e__", b"x")
    archive = stream.getvalue().replace(b"gr__e__", name.encode())
    gateway.publish_archive("d", {name: b"x"}, archive=archive)
    client.extract_dataset("d", out)
    assert tree(out) == {name: b"x"}


def renamed(raw: bytes, more: bytes, content: bytes = b"x") -> bytes:
    """A zip of one file whose name is not said to be UTF-8, with an extra field."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        info = zipfile.ZipInfo("_" * len(raw))
        info.extra = more
        opened.writestr(info, content)
    return stream.getvalue().replace(b"_" * len(raw), raw)


GBK = "图/片".encode("gbk")


def unicode_path(name: str, raw: bytes = GBK, version: int = 1) -> bytes:
    content = struct.pack("<BI", version, zlib.crc32(raw)) + name.encode()
    return struct.pack("<2H", 0x7075, len(content)) + content


@pytest.mark.parametrize(
    ("archive", "name"),
    [
        (archive_of({"./": b"", "./d/a": b"x"}, "zip"), "d/a"),
        (archive_of({"././a": b"x"}, "zip"), "a"),
        (renamed("./größe".encode(), b""), "größe"),
        (renamed(GBK, unicode_path("图/片")), "图/片"),
        (renamed(GBK, b"\x09\0\1\0x" + unicode_path("图/片")), "图/片"),
        (renamed(GBK, unicode_path("./图/片")), "图/片"),
        (renamed("ü".encode(), unicode_path("é", "ü".encode())), "é"),
        (renamed(b"\x81", b""), "ü"),
        (renamed(b"\x81", unicode_path("no", b"\x81", 2)), "ü"),
        (renamed(b"\x81", unicode_path("no", b"\x82")), "ü"),
    ],
)
def test_names_in_zips_are_those_of_the_manifest(
    gateway: FakeGateway, client: VisionO3Client, out: Path, archive: bytes, name: str
) -> None:
    gateway.publish_archive("d", {name: b"x"}, archive=archive)
    client.extract_dataset("d", out)
    assert tree(out) == {name: b"x"}


def test_a_name_of_a_damaged_unicode_path_is_not_there(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    content = struct.pack("<BI", 1, zlib.crc32(b"\x81")) + b"\xff"
    archive = renamed(b"\x81", struct.pack("<2H", 0x7075, len(content)) + content)
    gateway.publish_archive("d", {"no": b"x"}, archive=archive)
    with pytest.raises(errors.IntegrityError):
        client.extract_dataset("d", out)
    assert list(out.iterdir()) == []


def test_headers_of_a_long_tar_are_not_held(
    gateway: FakeGateway, client: VisionO3Client, out: Path
) -> None:
    files = {f"{number:05d}": b"" for number in range(3000)}
    gateway.publish_archive("d", files, "tar.gz")
    client.extract_dataset("d", out, paths=["00000"])
    client.download_dataset("d")
    tracemalloc.start()
    try:
        client.extract_dataset("d", out, paths=["02999"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB
    assert set(tree(out)) == {"00000", "02999"}


SMALL = {"a/1.txt": b"one" * 50, "b.bin": bytes(range(256)), "empty": b""}
ARCHIVES = {kind: archive_of(SMALL, kind) for kind in KINDS}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    within=st.booleans(),
    at=st.floats(0, 1, exclude_max=True),
    instead=st.binary(max_size=8),
    length=st.integers(0, 40),
)
def test_any_changed_archive_gives_right_files_or_our_error(
    kind: str, within: bool, at: float, instead: bytes, length: int
) -> None:
    archive = ARCHIVES[kind]
    if within and kind == "tar.gz":  # else its checksum would tell
        archive = gzip.decompress(archive)
    start = int(at * len(archive))
    archive = archive[:start] + instead + archive[start + length :]
    if within and kind == "tar.gz":
        archive = gzip.compress(archive, 1)
    info = parse_info(DatasetInfo, FakeGateway().publish_archive("d", SMALL, kind))
    entries = Manifest(manifest_of(SMALL)).files
    with tempfile.TemporaryDirectory() as name, Target(Path(name)) as target:
        try:
            unpack(io.BytesIO(archive), info, entries, target)
        except errors.IntegrityError:
            assert list(Path(name).iterdir()) == []
        else:
            assert tree(Path(name)) == SMALL
