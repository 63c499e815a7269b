from __future__ import annotations

import functools
import gzip
import io
import json
import random
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from tests.fakes.archive_files import (
    DEFLATED,
    Entry,
    deflate,
    tar_gz,
    tar_header,
    tar_member,
    zip_file,
)
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.content.manifest import FileEntry, Manifest, encode_manifest, sort_key
from vision_o3.errors import LimitExceededError, UnsafeContentError
from vision_o3.formats.limits import Limits
from vision_o3.formats.manifests import inspect_archive
from vision_o3.formats.media_types import media_type_of
from vision_o3.formats.member_index import MemberIndex
from vision_o3.formats.members import read_member
from vision_o3.schemas.facts import NEW_FACTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Container = Literal["zip", "tar.gz"]
CONTAINERS: list[Container] = ["zip", "tar.gz"]
LIMITS = Limits()
MIB = 1 << 20


class Inspected:
    """What ``inspect_archive`` answers and writes."""

    def __init__(
        self,
        container: Container,
        content: bytes,
        limits: Limits = LIMITS,
        file: Any = None,
    ) -> None:
        manifest, index = io.BytesIO(), io.BytesIO()
        self.facts = inspect_archive(
            file or io.BytesIO(content),
            len(content),
            container,
            limits,
            manifest=manifest,
            index=index,
        )
        NEW_FACTS.validate_python(self.facts)
        self.content = content
        self.manifest = Manifest(manifest.getvalue())
        self.index = MemberIndex.decode(index.getvalue())
        assert self.index.container == container
        assert self.index.archive_size == len(content)
        assert self.index.count == len(self.manifest.files) == self.facts["files"]

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        number = self.manifest.position(path)
        assert number is not None
        size = self.manifest.files[number].size if end is None else end

        def read(first: int, last: int) -> Iterator[bytes]:
            for at in range(first, last, 4096):
                yield self.content[at : min(at + 4096, last)]

        return b"".join(read_member(self.index, number, read, start, size))


def listed(files: dict[str, bytes]) -> list[FileEntry]:
    entries = [
        FileEntry(path, len(content), cid_of_bytes(content), media_type_of(path))
        for path, content in files.items()
    ]
    return sorted(entries, key=sort_key)


def packed(container: Container, files: dict[str, bytes]) -> bytes:
    if container == "zip":
        return zip_file(
            *(Entry(path, content, DEFLATED) for path, content in files.items())
        )
    return tar_gz(*(tar_member(p.encode(), c) for p, c in files.items()))


NOISE = random.Random(1).randbytes(3 * MIB + 17)
TREES = {
    "nothing": {},
    "small files": {"b/a.jpg": b"\xff\xd8", "a.txt": b"abc", "b.json": b"{}"},
    "an empty file": {"a": b""},
    "a file of just one leaf": {"a": NOISE[:MIB]},
    "a file of a leaf and a byte": {"a": NOISE[: MIB + 1], "b": b"x"},
    "a large file among small ones": {"a": b"x", "b": NOISE, "c": b"y"},
    "more than what is read at once": {
        f"{number:04}": NOISE[number * 2000 : number * 2000 + 9999]
        for number in range(1100)
    },
    "much that unpacks to much": {f"{n:03}": bytes(90_000) for n in range(130)},
    "a large annotation file": {
        "a.json": json.dumps({"images": [], "annotations": [], "categories": [],
                              "x": "y" * (2 * MIB)}).encode(),
    },
    "names whose order is not that of text": {"é": b"1", "z": b"2", "😀": b"3",
                                              "\ue000": b"4", "a-b": b"5", "a/b": b"6"},
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", TREES)
def test_manifest_lists_all_files_each_with_its_own_cid(
    case: str, container: Container
) -> None:
    files = TREES[case]
    found = Inspected(container, packed(container, files))
    assert list(found.manifest.files) == listed(files)
    assert found.manifest.content == b"".join(encode_manifest(listed(files)))
    assert found.facts["container"] == container
    assert found.facts["unpacked_bytes"] == sum(map(len, files.values()))
    for path, content in files.items():
        assert found.read(path) == content


@pytest.mark.parametrize("container", CONTAINERS)
def test_file_on_disk_is_read_like_one_in_memory(
    container: Container, tmp_path: Path
) -> None:
    content = packed(container, TREES["a large file among small ones"])
    path = tmp_path / "archive"
    path.write_bytes(content)
    with path.open("rb") as file:
        found = Inspected(container, content, file=file)
    assert list(found.manifest.files) == listed(TREES["a large file among small ones"])


def test_facts_sum_up_the_files() -> None:
    files = {
        "train/cat/1.png": b"no image",
        "train/dog/2.png": b"no image",
        "val/cat/3.txt": b"text",
    }
    assert Inspected("zip", packed("zip", files)).facts == {
        "kind": "archive",
        "container": "zip",
        "files": 3,
        "unpacked_bytes": 20,
        "media_types": {
            "image/png": {"files": 2, "bytes": 16},
            "text/plain": {"files": 1, "bytes": 4},
        },
        "splits": {
            "train": {"files": 2, "images": 2},
            "val": {"files": 1, "images": 0},
        },
        "images": {
            "count": 0, "unreadable": 2, "min_width": 0, "max_width": 0,
            "min_height": 0, "max_height": 0, "sizes": {},
        },
        "annotations": Inspected("tar.gz", packed("tar.gz", files)).facts[
            "annotations"
        ],
    }  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_large_and_small_annotation_files_are_understood(container: Container) -> None:
    coco = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 5, "name": "cat"}],
        "info": "x" * (2 * MIB),
    }
    found = Inspected(
        container, packed(container, {"a.json": json.dumps(coco).encode()})
    )
    assert found.facts["annotations"]["classes"] == {"cat": 1}


def test_folders_are_not_listed() -> None:
    content = tar_gz(tar_member(b"d/", b"", b"5"), tar_member(b"d/a"))
    assert list(Inspected("tar.gz", content).manifest.files) == listed(
        {"d/a": b"content"}
    )
    content = zip_file(Entry("d/", b""), "d/a")
    assert list(Inspected("zip", content).manifest.files) == listed({"d/a": b"content"})


MANY = {f"{number}": NOISE[number : number + 9999] for number in range(200)}
BAD = {
    "zip, a bad CRC among many": (
        "zip", zip_file(*(Entry(p, c) for p, c in MANY.items()),
                        Entry("a", local={"crc": 1}, central={"crc": 1}))),
    "zip, a bad CRC first": (
        "zip", zip_file(Entry("a", local={"crc": 1}, central={"crc": 1}),
                        *(Entry(p, c) for p, c in MANY.items()))),
    "zip, a bad CRC of a large file": (
        "zip", zip_file("b", Entry("a", NOISE, local={"crc": 1}, central={"crc": 1}))),
    "zip, a bad CRC beside a large file": (
        "zip", zip_file(Entry("a", NOISE, local={"crc": 1}, central={"crc": 1}),
                        Entry("c", NOISE * 9))),
    "zip, a damaged small file": (
        "zip", zip_file(Entry("a", b"abc", DEFLATED, packed=b"\xff" * 9), "b")),
    "zip, a small file too short": (
        "zip", zip_file(Entry("a", b"abc", DEFLATED, packed=deflate(b"ab")), "b")),
    "zip, a small file too long": (
        "zip", zip_file(Entry("a", b"abc", DEFLATED, packed=deflate(b"abcd")), "b")),
    "zip, more packed bytes than needed": (
        "zip", zip_file(Entry("a", b"abc", DEFLATED, packed=deflate(b"abc") + b"x"),
                        "b")),
    "a tar.gz as zip": ("zip", tar_gz(tar_member(b"a"))),
    "a zip as tar.gz": ("tar.gz", zip_file("a")),
    "a gzip of no tar": ("tar.gz", gzip.compress(b"x" * 999)),
    "a gzip of nothing": ("tar.gz", gzip.compress(b"")),
    "a tar not compressed": ("tar.gz", tar_member(b"a") + bytes(1024)),
    "tar.gz, garbage after it": ("tar.gz", tar_gz(tar_member(b"a")) + b"garbage"),
    "tar.gz, zeros after it": ("tar.gz", tar_gz(tar_member(b"a")) + bytes(9)),
    "tar.gz, no end": ("tar.gz", tar_gz(tar_member(b"a"), end=b"")),
    "tar.gz, a large file cut short": ("tar.gz", tar_gz(tar_header(b"a", 4 * MIB),
                                                        NOISE)),
    "tar.gz, a bad CRC": (
        "tar.gz", tar_gz(tar_member(b"a", NOISE))[:-8] + bytes(8)),
    "tar.gz, two archives": ("tar.gz", tar_gz(tar_member(b"a")) * 2),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_archive_is_refused_and_no_thread_is_left(case: str) -> None:
    container, content = BAD[case]
    threads = threading.active_count()
    with pytest.raises(ValueError, match=r"."):
        Inspected(container, content)  # type: ignore[arg-type]  # one of the two
    assert threading.active_count() == threads


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("cut", [1, 4, 9, 30, 100, 5000])
def test_archive_cut_short_is_refused(container: Container, cut: int) -> None:
    content = packed(container, {"a": NOISE[:9000], "b": NOISE[9000:99_000]})
    with pytest.raises(ValueError, match=r"."):
        Inspected(container, content[:-cut])


@pytest.mark.parametrize("container", CONTAINERS)
def test_unsafe_path_is_refused(container: Container) -> None:
    with pytest.raises(UnsafeContentError, match="outside"):
        Inspected(container, packed(container, {"../a": b"x"}))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (Limits(), {"a": bytes(40 * MIB)}),
        (Limits(), {f"{number}": bytes(MIB) for number in range(20)}),
        (Limits(unpacked_bytes=9999), {"a": bytes(10_000)}),
        (Limits(archive_files=2), {"a": b"", "b": b"", "c": b""}),
    ],
)
def test_what_exceeds_a_limit_is_refused(
    container: Container, limits: Limits, files: dict[str, bytes]
) -> None:
    with pytest.raises(LimitExceededError):
        Inspected(container, packed(container, files), limits)


def test_concatenated_gzip_members_are_one_archive() -> None:
    tar = tar_member(b"a", NOISE) + tar_member(b"b") + bytes(1024)
    parts = [tar[:700], tar[700:2_000_000], tar[2_000_000:]]
    content = b"".join(map(gzip.compress, parts))
    found = Inspected("tar.gz", content)
    assert found.read("b") == b"content"
    assert found.read("a", 999_999, 1_000_009) == NOISE[999_999:1_000_009]


# Deflate of an incomplete code, which ISA-L takes and zlib does not.
LENIENT = bytes.fromhex("0dc7c10d000000c140cafe33933c2e6d432407fb027e9f42a50c")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("alone", [True, False])
def test_stream_that_zlib_refuses_is_refused(container: Container, alone: bool) -> None:
    body = isal_zlib.decompressobj(-15).decompress(LENIENT, MIB)
    assert body
    with pytest.raises(zlib.error):
        zlib.decompress(LENIENT, -15)
    if container == "zip":
        others = [] if alone else ["b"]
        content = zip_file(Entry("a", body, DEFLATED, packed=LENIENT), *others)
    else:
        trailer = struct.pack("<2I", zlib.crc32(body), len(body))
        content = (
            gzip.compress(tar_header(b"a", len(body)))
            + gzip.compress(b"")[:10] + LENIENT + trailer
            + gzip.compress(bytes(-len(body) % 512 + 1024))
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"damaged|length or the CRC"):
        Inspected(container, content)


# Against the standard library, on a tree that it has extracted.

NAMES = st.text(
    st.characters(blacklist_categories=["C", "Z"], blacklist_characters="/\\:"),
    min_size=1,
    max_size=8,
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.integers(0, 99), st.integers(0, 70_000)).map(
        lambda pair: NOISE[pair[0] : pair[0] + pair[1]]
    ),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 20_000)).map(
        lambda pair: pair[0] * pair[1]
    ),
)
GENERATED = st.dictionaries(PATHS, CONTENTS, max_size=6).filter(
    lambda tree: not any(p.startswith(f"{q}/") for p in tree for q in tree)
)


def by_zipfile(tree: dict[str, bytes], methods: Iterator[int]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in tree.items():
            archive.writestr(path, content, compress_type=next(methods))
    return file.getvalue()


def by_tarfile(tree: dict[str, bytes], form: int, level: int, cut: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for path, content in tree.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    tar = file.getvalue()
    return gzip.compress(tar[:cut], level) + gzip.compress(tar[cut:], level)


def extracted(
    open_archive: Callable[[io.BytesIO], Any], content: bytes
) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        with open_archive(io.BytesIO(content)) as archive:
            archive.extractall(directory)  # noqa: S202 - it is of our own making
        root = Path(directory)
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }


def check_against(
    found: Inspected, files: dict[str, bytes], data: st.DataObject
) -> None:
    assert list(found.manifest.files) == listed(files)
    for path, content in files.items():
        assert found.read(path) == content
        end = data.draw(st.integers(0, len(content)))
        start = data.draw(st.integers(0, end))
        assert found.read(path, start, end) == content[start:end]


@settings(deadline=None)  # it writes files
@given(GENERATED, st.data())
def test_zip_is_what_zipfile_extracts(
    tree: dict[str, bytes], data: st.DataObject
) -> None:
    methods = (data.draw(st.sampled_from([0, 8])) for _ in tree)
    content = by_zipfile(tree, methods)
    files = extracted(zipfile.ZipFile, content)
    assert files == tree
    check_against(Inspected("zip", content), files, data)


@settings(deadline=None)  # it writes files
@given(
    GENERATED,
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 9),
    st.data(),
)
def test_tar_gz_is_what_tarfile_extracts(
    tree: dict[str, bytes], form: int, level: int, data: st.DataObject
) -> None:
    content = by_tarfile(tree, form, level, data.draw(st.integers(0, 99_999)))
    files = extracted(functools.partial(tarfile.open, None, "r:gz"), content)
    assert files == tree
    check_against(Inspected("tar.gz", content), files, data)


@settings(deadline=None)  # it starts threads
@given(st.sampled_from(CONTAINERS), st.data())
def test_any_bytes_are_inspected_or_refused(
    container: Container, data: st.DataObject
) -> None:
    content = bytearray(packed(container, {"d/a.txt": b"abc" * 300, "b.json": b"{}"}))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    rest = data.draw(st.binary(max_size=20))
    try:
        Inspected(container, bytes(content[:cut]) + rest)
    except (ValueError, UnsafeContentError, LimitExceededError):
        return


def test_cids_are_those_of_the_files_alone() -> None:
    found = Inspected("zip", zip_file(Entry("a", NOISE, DEFLATED), "b"))
    assert found.manifest.files[0].cid == cid_of_bytes(NOISE)
    assert found.manifest.files[1].cid == CID.of_block(0x55, b"content")
    assert zlib.crc32(found.read("a")) == zlib.crc32(NOISE)
