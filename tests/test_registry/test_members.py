from __future__ import annotations

import asyncio
import io
import os
import random
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from isal import igzip

from tests.fakes.counting_store import CountingStore
from tests.test_registry.conftest import Registry, open_registry
from vision_o3.content.dag import cid_of_bytes
from vision_o3.content.manifest import Manifest
from vision_o3.errors import IntegrityError, MalformedBlockError, NotFoundError
from vision_o3.registry.values import Version

MIB = 1 << 20
FILES = int(os.environ.get("VISION_O3_TEST_FILES", "2500"))
"""Of the large archive; 10000 of them make a gigabyte."""


def read_file(
    registry: Registry, version: Version, path: str, start: int = 0, end: int = -1
) -> bytes:
    datasets = registry.datasets

    async def gather() -> bytes:
        member = datasets.find_file(version, path)
        stop = member.entry.size if end < 0 else end
        stream = datasets.stream_file(member, start, stop)
        return b"".join([bytes(piece) async for piece in stream])

    return asyncio.run(gather())


def test_archive_is_stored_with_its_listings(registry: Registry) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("b/2.txt", b"two")
        archive.writestr("a/1.txt", b"one")
    version = registry.publish_dataset(file.getvalue()).version
    assert registry.stored_keys() == {
        "datasets/d/v1.zip",
        "datasets/d/v1.manifest.json",
        "datasets/d/v1.members.idx",
        "datasets/d/v1.record.json",
    }
    manifest = Manifest(registry.datasets.manifest(version), version.manifest_cid)
    assert [(entry.path, entry.cid) for entry in manifest.files] == [
        ("a/1.txt", cid_of_bytes(b"one")),
        ("b/2.txt", cid_of_bytes(b"two")),
    ]
    assert read_file(registry, version, "a/1.txt") == b"one"
    with pytest.raises(NotFoundError, match="has no file 'a'"):
        registry.datasets.find_file(version, "a")
    page = registry.datasets.files(version, page=2, page_size=1)
    assert [entry.path for entry in page.items] == ["b/2.txt"]
    assert page.total == 2


def test_leaving_a_file_early_frees_it(registry: Registry) -> None:
    content = random.Random(1).randbytes(5 * MIB)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", content)
    version = registry.publish_dataset(file.getvalue()).version
    datasets = registry.datasets

    async def leave() -> None:
        member = datasets.find_file(version, "a.bin")
        stream = datasets.stream_file(member, 0, member.entry.size)
        first = bytes(await anext(stream))
        assert 0 < len(first) <= MIB
        assert content.startswith(first)
        await stream.aclose()

    asyncio.run(leave())


def large_archive(path: Path, kind: str) -> bytes:
    """Write an archive of ``FILES``; return the content of file 2000."""
    block = random.Random(5).randbytes(107_000)
    files = ((f"images/{n:05}.jpg", n.to_bytes(4) + block) for n in range(FILES))
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files:
                archive.writestr(name, content)
    else:
        with (
            igzip.IGzipFile(str(path), "wb", compresslevel=1) as packed,  # type: ignore[no-untyped-call]  # isal types its functions only
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    assert path.stat().st_size > 107_000 * FILES
    return (2000).to_bytes(4) + block


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "most"), [("zip", 0.01), ("tar.gz", 0.05)])
def test_one_file_of_a_large_archive_reads_little_of_it(
    tmp_path: Path, kind: str, most: float
) -> None:
    archive = tmp_path / f"d.{kind}"
    expected = large_archive(archive, kind)
    size = archive.stat().st_size
    store = CountingStore(tmp_path / "objects")
    with open_registry(tmp_path, store) as registry:
        content = archive.read_bytes()
        archive.unlink()
        version = registry.publish_dataset(content, filename=archive.name).version
        del content
        for start, end in ((0, -1), (1000, 2000)):
            store.bytes_read.clear()
            path = "images/02000.jpg"
            found = read_file(registry, version, path, start, end)
            assert found == (expected if end < 0 else expected[start:end])
            # Counted: archive, sidecar, manifest and index, nothing kept before.
            assert sum(store.bytes_read.values()) < most * size
            assert store.bytes_read[version.object_key] > 0


def test_index_that_points_elsewhere_is_not_believed(registry: Registry) -> None:
    """The manifest's CID decides, whatever the index says."""
    first, second = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(first, "w") as archive:
        archive.writestr("a.txt", b"one")
        archive.writestr("b.txt", b"two")
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("b.txt", b"two")
        archive.writestr("a.txt", b"one")
    right = registry.publish_dataset(first.getvalue()).version
    other = registry.publish_dataset(second.getvalue(), name="e").version
    version = replace(right, index_key=other.index_key, index_cid=other.index_cid)
    with pytest.raises(IntegrityError):
        read_file(registry, version, "a.txt")


def zip_of(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_skipping_a_long_beginning_is_done_in_short_steps(registry: Registry) -> None:
    """So that whoever has left is noticed."""
    version = registry.publish_dataset(zip_of(a=bytes(9 * MIB))).version
    members = registry.datasets._members
    member = members.find(version, "a")
    pieces = list(members.read(member, 9 * MIB - 1, 9 * MIB))
    assert [bytes(piece) for piece in pieces if piece] == [b"\0"]
    assert len(pieces) > 8


@pytest.mark.parametrize("moments", range(8))
def test_caller_who_leaves_while_a_step_is_at_work_is_let_go(
    registry: Registry, moments: int
) -> None:
    content = random.Random(1).randbytes(MIB) + bytes(39 * MIB)
    version = registry.publish_dataset(zip_of(a=content)).version
    datasets = registry.datasets
    member = datasets.find_file(version, "a")

    async def leave() -> None:
        stream = datasets.stream_file(member, 40 * MIB - 1, 40 * MIB)
        first = asyncio.ensure_future(anext(stream))
        for _ in range(moments):
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await stream.aclose()

    asyncio.run(leave())


def test_no_bytes_are_read_for_none(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "objects")
    with open_registry(tmp_path, store) as registry:
        version = registry.publish_dataset(zip_of(a=b"abc")).version
        store.bytes_read.clear()
        assert read_file(registry, version, "a", 1, 1) == b""
        assert store.bytes_read[version.object_key] == 0


def test_whole_large_file_that_is_not_its_cid_ends_before_its_last_byte(
    registry: Registry,
) -> None:
    """An index that names the file beside it: right leaves, wrong file."""
    one, two = (random.Random(seed).randbytes(3 * MIB) for seed in (1, 2))
    right = registry.publish_dataset(zip_of(a=one, b=two)).version
    other = registry.publish_dataset(zip_of(b=two, a=one), name="e").version
    lying = replace(right, index_key=other.index_key, index_cid=other.index_cid)
    received = bytearray()
    datasets = registry.datasets

    async def gather() -> None:
        member = datasets.find_file(lying, "a")
        async for piece in datasets.stream_file(member, 0, member.entry.size):
            received.extend(piece)

    with pytest.raises(IntegrityError):
        asyncio.run(gather())
    assert len(received) < 3 * MIB


@pytest.mark.parametrize("change", ["no index", "not an index"])
def test_version_without_a_usable_index_is_refused(
    registry: Registry, change: str
) -> None:
    version = registry.publish_dataset(zip_of(a=b"abc")).version
    changed = replace(version, index_key=None, index_cid=None)
    if change == "not an index":  # as its CID says, but of no use
        changed = replace(
            version, index_key=version.manifest_key, index_cid=version.manifest_cid
        )
    expected = NotFoundError if change == "no index" else MalformedBlockError
    with pytest.raises(expected):
        read_file(registry, changed, "a")
