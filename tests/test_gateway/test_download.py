from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from structlog.testing import capture_logs

from tests.fakes.model_files import tflite
from tests.fakes.scripted_store import ScriptedStore
from tests.test_gateway.running import MIB, OpenGateway, Running, flip_bit, problem
from vision_o3.content.cid import CID
from vision_o3.content.dag import cid_of_bytes
from vision_o3.content.leaves import LeafTable
from vision_o3.errors import InvalidRangeError
from vision_o3.gateway.download import Content, Download, Reply, parse_range
from vision_o3.storage.local import LocalStore

SIZE = 2 * MIB + 1000
CONTENT = tflite(1, SIZE)


@dataclass
class Published:
    running: Running
    cid: str

    def get(
        self, path: str = "/models/m/download", method: str = "GET", **headers: str
    ) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.running.request(method, path, headers=names)


@pytest.fixture
def published(running: Running) -> Published:
    answer = running.publish(CONTENT)
    assert answer.status_code == 201
    return Published(running, answer.json()["cid"])


WAYS = {
    "/models/m/download": "private, no-cache",
    "/models/m/download?version=1": "private, max-age=31536000, immutable",
    "/models/m/versions/1/download": "private, max-age=31536000, immutable",
    "/models/cid/{cid}/download": "private, max-age=31536000, immutable",
}


@pytest.mark.parametrize("path", WAYS)
def test_whole_file_comes_with_every_header(published: Published, path: str) -> None:
    answer = published.get(path.format(cid=published.cid))
    assert answer.status_code == 200
    assert answer.content == CONTENT
    expected = {
        "accept-ranges": "bytes",
        "cache-control": WAYS[path],
        "content-disposition": 'attachment; filename="m-v1.tflite"',
        "content-length": str(SIZE),
        "content-type": "application/octet-stream",
        "etag": f'"{published.cid}"',
        "x-content-type-options": "nosniff",
        "x-vision-o3-cid": published.cid,
        "x-vision-o3-name": "m",
        "x-vision-o3-size": str(SIZE),
        "x-vision-o3-version": "1",
    }
    head = published.get(
        path.format(cid=published.cid), method="HEAD", Range="bytes=1-"
    )
    for headers in (dict(answer.headers), dict(head.headers)):
        assert headers.pop("x-request-id")
        assert headers == expected
    assert head.status_code == 200
    assert not head.content


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=5-9", 5, 10),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE),
        (f"bytes={MIB - 1}-{MIB}", MIB - 1, MIB + 1),
        (f"bytes={MIB}-{2 * MIB - 1}", MIB, 2 * MIB),
        ("Bytes = 3 - 4", 3, 5),
        ("bytes=1-9999999999999999999", 1, SIZE),
    ],
)
def test_range_gives_those_bytes(
    published: Published, asked: str, start: int, end: int
) -> None:
    answer = published.get(Range=asked)
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=0-1" + ",0-1" * 1000,
        "bytes=1-" + "9" * 30,
        "bytes=5-4",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "pages=1-2",
        "x",
    ],
)
def test_other_ranges_give_the_whole_file(published: Published, asked: str) -> None:
    answer = published.get(Range=asked)
    assert answer.status_code == 200
    assert len(answer.content) == SIZE


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE}-{SIZE}"]
)
def test_range_outside_is_refused(published: Published, asked: str) -> None:
    answer = published.get(Range=asked)
    assert problem(answer) == (416, "invalid_range")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_empty_file_has_no_range(asked: str) -> None:
    with pytest.raises(InvalidRangeError):
        parse_range(asked, 0)
    assert parse_range("", 0) is None


def test_copy_that_is_current_is_not_sent_again(published: Published) -> None:
    etag = f'"{published.cid}"'
    for value in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = published.get(
                method=method, If_None_Match=value, Range="bytes=0-1"
            )
            assert answer.status_code == 304
            assert answer.headers["etag"] == etag
            assert answer.headers["cache-control"] == "private, no-cache"
            assert "content-length" not in answer.headers
            assert not answer.content
    for value in ('"other"', published.cid):
        assert published.get(If_None_Match=value).status_code == 200


def test_range_is_honoured_only_if_the_copy_is_of_the_same_content(
    published: Published,
) -> None:
    etag = f'"{published.cid}"'
    assert published.get(Range="bytes=0-1", If_Range=etag).status_code == 206
    for value in ('"other"', f"W/{etag}", "Tue, 24 Nov 2026 14:00:00 GMT"):
        answer = published.get(Range="bytes=0-1", If_Range=value)
        assert answer.status_code == 200


def test_small_file_names_its_digest_and_has_no_sidecar(running: Running) -> None:
    content = tflite(3)
    document = running.publish(content).json()
    answer = running.get("/models/m/download")
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "dag" not in document["links"]
    answer = running.get(f"/models/cid/{document['cid']}/dag")
    assert problem(answer) == (404, "not_found")
    assert "single leaf" in answer.json()["detail"]


def test_sidecar_verifies_the_file(published: Published) -> None:
    path = f"/models/cid/{published.cid}/dag"
    answer = published.get(path)
    assert answer.headers["content-type"] == "application/vnd.ipld.car; version=1"
    table = LeafTable.from_sidecar(CID.parse(published.cid), answer.content)
    for index in range(table.count):
        start, end = table.span(index)
        table.verify(index, CONTENT[start:end])
    etag = answer.headers["etag"]
    assert published.get(path, If_None_Match=etag).status_code == 304
    head = published.get(path, method="HEAD")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_damaged_first_leaf_is_not_sent(published: Published) -> None:
    flip_bit(published.running.object("models/m/v1.tflite"), 10)
    with capture_logs() as lines:
        answer = published.get()
    assert problem(answer) == (502, "digest_mismatch")
    assert "etag" not in answer.headers
    assert [line["event"] for line in lines] == [
        "leaf.wrong",  # and asked for again
        "object.wrong",
        "suspect.noted",
        "artifact.corrupt",
        "request.answered",
    ]
    assert published.get(Range=f"bytes={MIB}-{MIB}").status_code == 206


def test_damaged_sidecar_is_not_sent(published: Published) -> None:
    flip_bit(published.running.object("models/m/v1.dag.car"), 100)
    for path in (f"/models/cid/{published.cid}/dag", "/models/m/download"):
        status, code = problem(published.get(path))
        assert status == 502
        assert code in {"digest_mismatch", "malformed_block"}


def test_missing_object_is_the_gateways_fault(published: Published) -> None:
    published.running.object("models/m/v1.tflite").unlink()
    answer = published.get()
    assert problem(answer) == (502, "object_not_found")
    assert "v1.tflite" not in answer.text


class SigningStore(ScriptedStore):
    """A store that can sign URLs."""

    def presign_get(self, key: str, *, ttl_s: int) -> str | None:
        return f"https://o3.example/{key}?ttl={ttl_s}&signature=canary"


def test_direct_downloads_send_the_caller_to_the_store(
    open_gateway: OpenGateway, tmp_path: Path
) -> None:
    store = SigningStore("", LocalStore(tmp_path / "objects"))
    with open_gateway(
        store, direct_downloads=True, direct_downloads_ttl_s=60
    ) as running:
        cid = running.publish(tflite()).json()["cid"]
        with capture_logs() as lines:
            answer = running.get("/models/m/download")
            head = running.request("HEAD", "/models/m/download")
            not_modified = running.get(
                "/models/m/download", headers={"If-None-Match": f'"{cid}"'}
            )
    assert answer.status_code == 307
    url = "https://o3.example/models/m/v1.tflite?ttl=60&signature=canary"
    assert answer.headers["location"] == url
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["x-vision-o3-cid"] == cid
    assert head.status_code == 200
    assert not_modified.status_code == 304
    assert "canary" not in repr(lines)


def test_direct_downloads_fall_back_where_the_store_cannot(
    open_gateway: OpenGateway,
) -> None:
    with open_gateway(direct_downloads=True) as running:
        running.publish(tflite())
        assert running.get("/models/m/download").content == tflite()


def test_caller_who_leaves_before_the_first_byte_ends_the_work() -> None:
    """What is before a range in a compressed file may take long to unpack."""
    ended = False
    sent: list[object] = []

    async def stream(_: int, __: int) -> AsyncGenerator[memoryview]:
        nonlocal ended
        try:
            await asyncio.Event().wait()
            yield memoryview(b"never")
        finally:
            ended = True

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    version = SimpleNamespace(object_key="k", name="n", version=1)
    content = Content(version, cid_of_bytes(b"x"), 1, "x")  # type: ignore[arg-type]  # what is asked of it
    answer = Download(content, Reply(200, {}, 0, 1), stream, stall_timeout_s=1)
    asyncio.run(answer({"type": "http", "method": "GET"}, receive, send))
    assert ended
    assert sent == []
