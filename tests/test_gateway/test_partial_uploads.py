from __future__ import annotations

import http.client
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.model_files import tflite
from tests.test_gateway.running import MIB, OpenGateway, Running, Serve, problem
from vision_o3.content.dag import ContentHasher, cid_of_bytes

CONTENT = tflite(1, 3 * MIB + 17)
SIZE = len(CONTENT)


def sidecar_of(content: bytes) -> bytes:
    hasher = ContentHasher()
    hasher.update(content)
    return hasher.finish().sidecar() or b""


CID = str(cid_of_bytes(CONTENT))
SIDECAR = sidecar_of(CONTENT)
OTHER_CID = str(cid_of_bytes(tflite(2, 3 * MIB)))


def zip_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return stream.getvalue()


def begin(running: Running, **options: Any) -> httpx.Response:
    return running.request("PUT", f"/uploads/{CID}", content=SIDECAR, **options)


def send(
    running: Running, offset: int, content: bytes, **options: Any
) -> httpx.Response:
    path = f"/uploads/{CID}/parts/{offset}"
    return running.request("PUT", path, content=content, **options)


def send_all(running: Running, token: str = "") -> None:
    assert begin(running, token=token).status_code in {200, 201}
    assert send(running, 0, CONTENT, token=token).status_code == 204


def publish_cid(
    running: Running,
    cid: str = CID,
    collection: str = "models",
    token: str = "",
    **fields: Any,
) -> httpx.Response:
    given = {"name": "m", "filename": "m.tflite", "cid": cid, **fields}
    form = [(name, (None, value.encode())) for name, value in given.items()]
    return running.request("POST", f"/{collection}", files=form, token=token)


def partial_files(running: Running) -> list[Path]:
    found = running.settings.spool_directory.rglob("*")
    return [path for path in found if path.is_file()]


def test_an_upload_in_parts_becomes_a_version(running: Running) -> None:
    answer = begin(running)
    assert answer.status_code == 201
    document = answer.json()
    assert document.pop("expires_at").endswith("Z")
    assert document == {
        "cid": CID,
        "file_size": SIZE,
        "received": 0,
        "missing": [[0, SIZE]],
    }
    assert send(running, MIB, CONTENT[MIB:]).status_code == 204
    again = begin(running)
    assert (again.status_code, again.json()["missing"]) == (200, [[0, MIB]])
    assert problem(publish_cid(running)) == (409, "content_needed")
    assert send(running, 0, CONTENT[:MIB]).content == b""
    found = running.get(f"/uploads/{CID}").json()
    assert (found["received"], found["missing"]) == (SIZE, [])
    published = publish_cid(running, framework="tf", tags="a,b")
    assert published.status_code == 201
    assert published.headers["location"] == "/models/m/versions/1"
    version = published.json()
    assert (version["cid"], version["created"]) == (CID, True)
    assert (version["file_format"], version["tags"]) == ("tflite", ["a", "b"])
    assert running.get("/models/m/download").content == CONTENT
    assert partial_files(running) == []
    assert problem(running.get(f"/uploads/{CID}")) == (404, "not_found")


def test_what_the_latest_version_has_is_answered(running: Running) -> None:
    first = running.publish(CONTENT).json()
    begin(running)
    again = publish_cid(running)
    assert again.status_code == 200
    assert again.json() == {**first, "created": False}
    assert partial_files(running) == []


def test_content_of_any_version_is_published_without_a_byte(running: Running) -> None:
    running.publish(CONTENT)
    running.publish(tflite(2))
    published = publish_cid(running)
    assert (published.status_code, published.json()["version"]) == (201, 3)
    elsewhere = publish_cid(running, name="n", file_format="tflite", filename="")
    assert (elsewhere.status_code, elsewhere.json()["version"]) == (201, 1)
    assert running.get("/models/n/download").content == CONTENT
    keys = {found.key for found in running.gateway.store.list()}
    assert "models/n/v1.tflite" not in keys


def test_content_of_one_leaf_is_published_by_its_cid_too(running: Running) -> None:
    cid = running.publish(tflite(5)).json()["cid"]
    assert publish_cid(running, cid, name="n").status_code == 201
    answer = running.request("PUT", f"/uploads/{cid}", content=b"")
    assert problem(answer) == (422, "invalid_input")


def test_datasets_are_the_same_and_apart(running: Running) -> None:
    content = zip_of({"a.txt": tflite(3, 2 * MIB)})
    running.publish(content, "d.zip", "datasets", name="d")
    cid = str(cid_of_bytes(content))
    answer = publish_cid(running, cid, "datasets", name="e", filename="e.zip")
    assert answer.status_code == 201
    assert answer.json()["manifest_cid"]
    assert problem(publish_cid(running, cid, filename="m.zip")) == (
        409,
        "content_needed",
    )


def test_who_may_not_read_learns_nothing_of_what_is_stored(running: Running) -> None:
    running.publish(CONTENT)
    writer = running.token("model:write", "dataset:read")
    answer = publish_cid(running, name="n", token=writer)
    assert problem(answer) == (409, "content_needed")
    assert answer.json()["cid"] == CID
    send_all(running, writer)
    assert publish_cid(running, name="n", token=writer).status_code == 201
    # Nor of what the latest version is, and what is said of it.
    assert problem(publish_cid(running, name="m", token=writer)) == (
        409,
        "content_needed",
    )


def test_content_that_the_store_has_lost_is_needed(running: Running) -> None:
    running.publish(CONTENT)
    running.object("models/m/v1.tflite").unlink()
    assert problem(publish_cid(running, name="n")) == (409, "content_needed")
    send_all(running)
    assert publish_cid(running, name="n").status_code == 201
    assert running.get("/models/n/download").content == CONTENT


@pytest.mark.parametrize("cid", [OTHER_CID, str(cid_of_bytes(b"other"))])
def test_unknown_content_is_needed_and_nothing_is_left(
    running: Running, cid: str
) -> None:
    assert problem(publish_cid(running, cid)) == (409, "content_needed")
    running.assert_nothing_left()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cid": ""}, (422, "invalid_input")),
        ({"cid": "Qm123"}, (422, "invalid_cid")),
        ({"name": "a/b"}, (422, "invalid_name")),
        ({"fromat": "x"}, (422, "invalid_input")),
    ],
)
def test_bad_forms_without_a_file(
    running: Running, fields: dict[str, str], expected: tuple[int, str]
) -> None:
    given = {"cid": CID, **fields}
    assert problem(publish_cid(running, **given)) == expected
    running.assert_nothing_left()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"file_format": "onnx"}, (422, "format_mismatch")),
        ({"filename": ""}, (422, "format_mismatch")),
        ({"filename": "m.exe"}, (422, "format_mismatch")),
    ],
)
def test_a_mistake_in_the_form_does_not_cost_the_upload(
    running: Running, fields: dict[str, str], expected: tuple[int, str]
) -> None:
    send_all(running)
    assert problem(publish_cid(running, **fields)) == expected
    assert publish_cid(running).status_code == 201
    assert partial_files(running) == []


def test_unsafe_content_is_not_kept(running: Running) -> None:
    content = zip_of({"../a": tflite(3, 2 * MIB)})
    cid = str(cid_of_bytes(content))
    path = f"/uploads/{cid}"
    running.request("PUT", path, content=sidecar_of(content))
    running.request("PUT", f"{path}/parts/0", content=content)
    answer = publish_cid(running, cid, "datasets", name="d", filename="d.zip")
    assert problem(answer) == (422, "unsafe_content")
    assert partial_files(running) == []
    answer = publish_cid(running, cid, "datasets", name="d", filename="d.zip")
    assert problem(answer) == (409, "content_needed")


@pytest.mark.parametrize(
    ("offset", "content", "expected"),
    [
        ("1", CONTENT[:MIB], (416, "invalid_range")),
        ("0", CONTENT[: MIB + 1], (416, "invalid_range")),
        (str(4 * MIB), CONTENT[:MIB], (416, "invalid_range")),
        ("-1", CONTENT[:MIB], (416, "invalid_range")),
        ("x", CONTENT[:MIB], (416, "invalid_range")),
        ("\u0660", CONTENT[:MIB], (416, "invalid_range")),
        ("9" * 30, CONTENT[:MIB], (416, "invalid_range")),
        (str(MIB), CONTENT[:MIB], (422, "cid_mismatch")),
        ("0", b"", (422, "invalid_input")),
    ],
)
def test_bad_parts_are_refused(
    running: Running, offset: str, content: bytes, expected: tuple[int, str]
) -> None:
    begin(running)
    answer = running.request("PUT", f"/uploads/{CID}/parts/{offset}", content=content)
    assert problem(answer) == expected
    assert running.get(f"/uploads/{CID}").json()["received"] == 0


def test_a_part_must_say_its_length(running: Running) -> None:
    begin(running)

    async def pieces() -> Any:
        yield CONTENT[:MIB]

    answer = running.request("PUT", f"/uploads/{CID}/parts/0", content=pieces())
    assert problem(answer) == (422, "invalid_input")
    assert "Content-Length" in answer.json()["detail"]


def test_a_part_cut_short_keeps_its_whole_leaves(running: Running) -> None:
    begin(running)
    headers = {"Content-Length": str(3 * MIB)}
    answer = send(running, 0, CONTENT[: 2 * MIB + 5], headers=headers)
    assert problem(answer) == (400, "incomplete_upload")
    found = running.get(f"/uploads/{CID}?start=0&end={3 * MIB}").json()
    assert (found["received"], found["missing"]) == (2 * MIB, [[2 * MIB, 3 * MIB]])


def test_bad_questions_are_refused(running: Running) -> None:
    begin(running)
    for query, expected in (
        (f"start=1&end={MIB}", (416, "invalid_range")),
        (f"end={9 * MIB}", (416, "invalid_range")),
        ("start=-1", (422, "invalid_input")),
        ("end=x", (422, "invalid_input")),
    ):
        assert problem(running.get(f"/uploads/{CID}?{query}")) == expected


@pytest.mark.parametrize("body", [b"", SIDECAR[:-1], sidecar_of(tflite(2, 3 * MIB))])
def test_a_wrong_sidecar_is_refused(running: Running, body: bytes) -> None:
    answer = running.request("PUT", f"/uploads/{CID}", content=body)
    assert problem(answer) == (422, "cid_mismatch")
    running.assert_nothing_left()


def test_a_sidecar_longer_than_any_is_not_read(running: Running) -> None:
    sent = 0

    async def pieces() -> Any:
        nonlocal sent
        while True:
            sent += MIB
            yield bytes(MIB)

    answer = running.request("PUT", f"/uploads/{CID}", content=pieces())
    assert problem(answer) == (413, "too_large")
    assert sent < 80 * MIB  # with what is thrown away for a while
    running.assert_nothing_left()


def test_limits_are_told_before_a_byte_is_sent(open_gateway: OpenGateway) -> None:
    with open_gateway(max_upload_bytes=SIZE - 1) as running:
        answer = begin(running)
        assert problem(answer) == (413, "too_large")
        assert answer.json()["limit"] == SIZE - 1
        running.assert_nothing_left()
    with open_gateway(min_free_bytes=1 << 60) as running:
        assert problem(begin(running)) == (507, "storage_full")
        running.assert_nothing_left()


def test_an_upload_is_seen_by_its_owner_alone(running: Running) -> None:
    send_all(running)
    bob = running.token(user="bob")
    assert problem(running.get(f"/uploads/{CID}", token=bob)) == (404, "not_found")
    for method in ("GET", "DELETE"):
        answer = running.request(method, f"/uploads/{CID}", token=bob)
        assert problem(answer) == (404, "not_found")
    answer = send(running, 0, CONTENT, token=bob)
    assert problem(answer) == (404, "not_found")
    assert problem(publish_cid(running, token=bob)) == (409, "content_needed")
    assert running.get(f"/uploads/{CID}").json()["missing"] == []


def test_an_upload_can_be_forgotten(running: Running) -> None:
    send_all(running)
    answer = running.request("DELETE", f"/uploads/{CID}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert partial_files(running) == []
    answer = running.request("DELETE", f"/uploads/{CID}")
    assert problem(answer) == (404, "not_found")


def test_an_upload_outlives_its_gateway_and_expires(open_gateway: OpenGateway) -> None:
    with open_gateway() as running:
        begin(running)
        send(running, 0, CONTENT[:MIB])
    with open_gateway() as running:
        assert begin(running).json()["received"] == MIB
    with open_gateway(upload_expires_s=0.001, sweep_interval_s=0.01) as running:
        deadline = time.monotonic() + 60
        while partial_files(running):
            assert time.monotonic() < deadline, "it did not expire"
            time.sleep(0.01)


@pytest.mark.integration
def test_a_link_that_breaks_costs_no_whole_leaf(serve: Serve) -> None:
    with serve(stall_timeout_s=20) as served:
        headers = served.headers()

        def ask() -> dict[str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", served.port)
            connection.request("PUT", f"/uploads/{CID}", SIDECAR, headers)
            document: dict[str, Any] = json.load(connection.getresponse())
            connection.close()
            return document

        assert ask()["received"] == 0
        with served.connect() as connection:
            head = f"PUT /uploads/{CID}/parts/0 HTTP/1.1\r\nHost: x\r\n"
            head += f"Authorization: {headers['Authorization']}\r\n"
            head += f"Content-Length: {SIZE}\r\n\r\n"
            connection.sendall(head.encode() + CONTENT[: 2 * MIB + 99])
        deadline = time.monotonic() + 60
        while ask()["received"] < 2 * MIB:
            assert time.monotonic() < deadline, "the leaves were lost"
            time.sleep(0.01)
        assert ask()["missing"] == [[2 * MIB, SIZE]]
