from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Mapping
from urllib.parse import quote

import httpx
import pytest

from tests.test_gateway.running import MIB, OpenGateway, Running, flip_bit, problem
from vision_o3.content.dag import cid_of_bytes
from vision_o3.content.manifest import Manifest

FILES = {
    "train/cat/1.jpg": b"a cat",
    "train/cat/2 ü.jpg": b"another cat",
    "train/dog/1.jpg": b"a dog",
    "empty.txt": b"",
    "large.bin": random.Random(3).randbytes(2 * MIB + 77),
    "zeros.bin": bytes(3 * MIB + 5),
}
TYPES = {".jpg": "image/jpeg", ".txt": "text/plain"}
COCO: dict[str, list[dict[str, object]]] = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 1, 1]},
    ],
}


def zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return file.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


ARCHIVES = {"d.zip": zipped, "d.tar.gz": tarred}


def publish(
    running: Running, content: bytes, filename: str = "d.zip", name: str = "d"
) -> httpx.Response:
    return running.publish(content, filename, collection="datasets", name=name)


@pytest.mark.parametrize("filename", ARCHIVES)
def test_published_dataset_is_answered_by_every_route(
    running: Running, filename: str
) -> None:
    content = ARCHIVES[filename](FILES)
    answer = publish(running, content, filename)
    assert answer.status_code == 201
    document = answer.json()
    assert document.pop("created") is True
    assert answer.headers["location"] == "/datasets/d/versions/1"
    cid = document["cid"]
    assert cid == str(cid_of_bytes(content))
    assert document["format"] == filename.removeprefix("d.")
    assert document["links"]["manifest"] == "/datasets/d/versions/1/manifest"
    assert document["facts"]["kind"] == "archive"
    assert document["facts"]["files"] == len(FILES)
    assert document["facts"]["unpacked_bytes"] == sum(map(len, FILES.values()))
    for path in ("/datasets/d", "/datasets/d/versions/1", f"/datasets/cid/{cid}"):
        assert running.get(path).json() == document
    for path in ("/datasets", "/datasets/d/versions"):
        assert running.get(path).json()["items"] == [document]
    for path in ("/datasets/d/download", f"/datasets/cid/{cid}/download"):
        assert running.get(path).content == content
    again = publish(running, content, filename)
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert publish(running, content + b"x", filename).status_code == 422


@pytest.mark.parametrize("filename", ARCHIVES)
def test_manifest_lists_every_file_under_its_own_cid(
    running: Running, filename: str
) -> None:
    document = publish(running, ARCHIVES[filename](FILES), filename).json()
    answer = running.get("/datasets/d/versions/1/manifest")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == f'"{document["manifest_cid"]}"'
    assert str(cid_of_bytes(answer.content)) == document["manifest_cid"]
    manifest = Manifest(answer.content)
    assert {entry.path: entry.cid for entry in manifest.files} == {
        path: cid_of_bytes(content) for path, content in FILES.items()
    }
    for entry in manifest.files:
        suffix = entry.path[entry.path.rindex(".") :]
        expected = TYPES.get(suffix, "application/octet-stream")
        assert (entry.size, entry.media_type) == (len(FILES[entry.path]), expected)
    known = {"If-None-Match": answer.headers["etag"]}
    again = running.get("/datasets/d/versions/1/manifest", headers=known)
    assert (again.status_code, again.content) == (304, b"")


def test_manifest_comes_by_the_page_too(running: Running) -> None:
    publish(running, zipped(FILES))
    path = "/datasets/d/versions/1/manifest"
    whole = json.loads(running.get(path).content)["files"]
    first = running.get(f"{path}?page_size=4")
    assert first.json() == {
        "items": whole[:4],
        "page": 1,
        "page_size": 4,
        "total": len(FILES),
    }
    assert f'<{path}?page=2&page_size=4>; rel="next"' in first.headers["link"]
    assert running.get(f"{path}?page=2&page_size=4").json()["items"] == whole[4:]
    assert problem(running.get(f"{path}?page=0")) == (422, "invalid_input")


@pytest.mark.parametrize("filename", ARCHIVES)
def test_every_file_is_served_by_itself(running: Running, filename: str) -> None:
    publish(running, ARCHIVES[filename](FILES), filename)
    for path, content in FILES.items():
        url = f"/datasets/d/versions/1/files/{quote(path)}"
        answer = running.get(url)
        assert answer.content == content
        cid = str(cid_of_bytes(content))
        assert answer.headers["etag"] == f'"{cid}"'
        assert answer.headers["x-vision-o3-cid"] == cid
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"].startswith("attachment")
        head = running.request("HEAD", url)
        assert (head.content, head.headers["etag"]) == (b"", f'"{cid}"')
        known = running.get(url, headers={"If-None-Match": f'"{cid}"'})
        assert known.status_code == 304
    assert (
        "2%20%C3%BC.jpg"
        in running.get("/datasets/d/versions/1/files/train/cat/2%20%C3%BC.jpg").headers[
            "content-disposition"
        ]
    )


@pytest.mark.parametrize("filename", ARCHIVES)
@pytest.mark.parametrize("path", ["large.bin", "zeros.bin", "train/dog/1.jpg"])
def test_files_come_by_range(running: Running, filename: str, path: str) -> None:
    publish(running, ARCHIVES[filename](FILES), filename)
    content = FILES[path]
    size = len(content)
    for start, end in ((0, 1), (size // 2, size // 2 + 3), (size - 2, size), (0, size)):
        answer = running.get(
            f"/datasets/d/versions/1/files/{path}",
            headers={"Range": f"bytes={start}-{end - 1}"},
        )
        assert answer.status_code == 206
        assert answer.content == content[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = {"Range": f"bytes={size}-"}
    answer = running.get(f"/datasets/d/versions/1/files/{path}", headers=beyond)
    assert problem(answer) == (416, "invalid_range")


MISSING = {
    "/datasets/d/versions/1/files/no.jpg": (404, "not_found"),
    "/datasets/d/versions/1/files/train": (404, "not_found"),
    "/datasets/d/versions/1/files/%2E%2E/secret": (422, "invalid_path"),
    "/datasets/d/versions/1/files//etc/passwd": (422, "invalid_path"),
    "/datasets/d/versions/1/files/a%00b": (422, "invalid_path"),
    "/datasets/d/versions/1/files/a%5Cb": (422, "invalid_path"),
    "/datasets/d/versions/2/files/empty.txt": (404, "not_found"),
    "/datasets/d/versions/0/files/empty.txt": (422, "invalid_version"),
    "/datasets/no/versions/1/manifest": (404, "not_found"),
    "/datasets/json/versions/1/manifest": (404, "not_found"),
    "/datasets/json/versions/1/files/a": (404, "not_found"),
    "/datasets/d/diff": (422, "invalid_input"),
    "/datasets/d/diff?from=1&to=9": (404, "not_found"),
    "/datasets/d/diff?from=x&to=1": (422, "invalid_version"),
}


def test_what_is_not_there_is_said(running: Running) -> None:
    publish(running, zipped(FILES))
    answer = publish(running, b'{"a": 1}', "a.json", "json")
    assert answer.json()["manifest_cid"] is None
    assert "manifest" not in answer.json()["links"]
    for path, expected in MISSING.items():
        assert problem(running.get(path)) == expected, path


def test_difference_of_versions_is_told(running: Running) -> None:
    publish(running, zipped(FILES))
    changed = dict(FILES)
    changed["moved/3.jpg"] = changed.pop("train/dog/1.jpg")
    changed["new.txt"] = b"new"
    changed["empty.txt"] = b"no more"
    del changed["zeros.bin"]
    publish(running, tarred(changed), "d.tar.gz")
    document = running.get("/datasets/d/diff?from=1&to=2").json()
    assert document["from"]["version"] == 1
    assert document["to"]["version"] == 2
    files = document["files"]
    items = [(item["change"], item["path"]) for item in files.pop("items")]
    assert items == [
        ("added", "new.txt"),
        ("removed", "zeros.bin"),
        ("changed", "empty.txt"),
        ("renamed", "moved/3.jpg"),
    ]
    assert files == {
        "added": 1,
        "removed": 1,
        "changed": 1,
        "renamed": 1,
        "unchanged": 3,
        "page": 1,
        "page_size": 200,
        "total": 4,
    }
    last = running.get("/datasets/d/diff?from=1&to=2&page=4&page_size=1")
    (renamed,) = last.json()["files"]["items"]
    assert renamed["old_path"] == "train/dog/1.jpg"
    assert 'rel="prev"' in last.headers["link"]
    back = running.get("/datasets/d/diff?from=2&to=1").json()["files"]
    assert (back["added"], back["removed"], back["renamed"]) == (1, 1, 1)
    same = running.get("/datasets/d/diff?from=1&to=1").json()
    assert (same["files"]["total"], same["files"]["unchanged"]) == (0, len(FILES))


def test_difference_of_annotations_is_told(running: Running) -> None:
    publish(running, json.dumps(COCO).encode(), "a.json")
    more = {**COCO, "annotations": COCO["annotations"][1:]}
    publish(running, json.dumps(more).encode(), "a.json")
    document = running.get("/datasets/d/diff?from=1&to=2").json()
    assert document["files"] is None
    assert document["annotations"] == {
        "images": {"before": 2, "after": 2},
        "annotations": {"before": 3, "after": 2},
        "boxes": {"before": 3, "after": 2},
        "classes": {"cat": {"before": 2, "after": 1}},
    }


def test_only_counts_that_are_known_are_compared(running: Running) -> None:
    """Of more classes than are listed, the others may have changed or not."""
    names = [f"class {number:04}" for number in range(1600)]

    def coco(boxes: list[int]) -> bytes:
        document = {
            "images": [{"id": 1}],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": kind, "bbox": [0, 0, 1, 1]}
                for n, kind in enumerate(boxes)
            ],
        }
        return json.dumps(document).encode()

    publish(running, coco([1599, *range(1600)]), "a.json")
    publish(running, coco([1598, *range(1600)]), "a.json")
    document = running.get("/datasets/d/diff?from=1&to=2").json()
    assert document["annotations"]["classes"] == {}
    publish(running, zipped(FILES), "d.zip")
    document = running.get("/datasets/d/diff?from=1&to=3").json()
    assert document["files"] is None
    assert document["annotations"] is not None
    publish(running, b"[]", "a.json")
    document = running.get("/datasets/d/diff?from=1&to=4").json()
    assert document["annotations"] is None


def test_facts_filter_datasets(running: Running) -> None:
    publish(running, json.dumps(COCO).encode(), "a.json", "coco")
    publish(running, zipped(FILES), name="folders")
    publish(running, b"{}", "a.json", "plain")

    def names(query: str) -> list[str]:
        items = running.get(f"/datasets?{query}").json()["items"]
        return [item["name"] for item in items]

    assert names("annotations=coco") == ["coco"]
    assert names("annotations=imagefolder") == ["folders"]
    assert names("has_class=cat") == ["coco", "folders"]
    assert names("has_class=dog&format=zip") == ["folders"]
    assert names("has_class=%22") == []
    assert names("has_class=horse") == []
    assert problem(running.get("/datasets?annotations=x")) == (422, "invalid_input")
    assert problem(running.get("/datasets?framework=x")) == (422, "invalid_input")


@pytest.mark.parametrize("filename", ARCHIVES)
def test_damaged_archive_never_gives_a_wrong_file(
    running: Running, filename: str
) -> None:
    content = ARCHIVES[filename](FILES)
    publish(running, content, filename)
    flip_bit(running.object(f"datasets/d/v1{filename[1:]}"), 100)
    answer = running.get("/datasets/d/versions/1/files/train/cat/1.jpg")
    assert problem(answer) == (502, "digest_mismatch")


@pytest.mark.parametrize("key", ["v1.manifest.json", "v1.members.idx"])
def test_damaged_listing_is_not_believed(running: Running, key: str) -> None:
    publish(running, zipped(FILES))
    flip_bit(running.object(f"datasets/d/{key}"), 40)
    answer = running.get("/datasets/d/versions/1/files/large.bin")
    assert problem(answer) == (502, "digest_mismatch")
    running.object(f"datasets/d/{key}").unlink()
    answer = running.get("/datasets/d/versions/1/files/large.bin")
    assert problem(answer) == (502, "object_not_found")


def test_content_under_two_names_is_stored_once(running: Running) -> None:
    content = zipped(FILES)
    first = publish(running, content).json()
    second = publish(running, content, name="e").json()
    assert second["manifest_cid"] == first["manifest_cid"]
    keys = {found.key for found in running.gateway.store.list("datasets/e/")}
    assert keys == {"datasets/e/v1.record.json"}
    path = "/datasets/e/versions/1/files/train/cat/1.jpg"
    assert running.get(path).content == b"a cat"
    running.object("datasets/d/v1.members.idx").unlink()
    publish(running, content, name="f")
    keys = {found.key for found in running.gateway.store.list("datasets/f/")}
    assert keys == {
        "datasets/f/v1.manifest.json",
        "datasets/f/v1.members.idx",
        "datasets/f/v1.record.json",
    }


BAD = {
    "no archive": (b"text", "d.zip", (422, "format_mismatch")),
    "slip": (zipped({"../a": b"x"}), "d.zip", (422, "unsafe_content")),
    "many files": (zipped(dict.fromkeys("abcdef", b"")), "d.zip", (413, "too_large")),
    "long list": (zipped({"a" * 200: b""}), "d.zip", (413, "too_large")),
    "many bytes": (zipped({"a": bytes(9 * MIB)}), "d.zip", (413, "too_large")),
    "deep": (b"[" * 9 + b"]" * 9, "d.json", (413, "too_large")),
    "long": (json.dumps(["x" * 1000]).encode(), "d.json", (413, "too_large")),
    "entities": (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "d.xml",
                 (422, "unsafe_content")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_dataset_leaves_nothing(open_gateway: OpenGateway, kind: str) -> None:
    limits = {
        "max_archive_files": 5,
        "max_manifest_bytes": 300,
        "max_unpacked_bytes": 8 * MIB,
        "max_json_depth": 8,
        "max_json_bytes": 1000,
    }
    content, filename, expected = BAD[kind]
    with open_gateway(**limits) as running:
        assert problem(publish(running, content, filename)) == expected
        running.assert_nothing_left()
