from __future__ import annotations

import errno
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.fakes.model_files import tflite
from tests.test_gateway.running import MIB, OpenGateway, Running, problem
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.claims import insert_claim
from vision_o3.db.models import MODELS, ModelRow
from vision_o3.db.queries import database_now

OTHER_CID = str(cid_of_bytes(b"other"))


def test_published_model_is_answered_by_every_route(running: Running) -> None:
    content = tflite(1, 3 * MIB)
    answer = running.publish(
        content,
        framework="tensorflow",
        model_type="detection",
        description="Größer\nals vorher.",
        tags=["edge", "int8, nano"],
        cid=str(cid_of_bytes(content)),
    )
    assert answer.status_code == 201
    document = answer.json()
    assert document.pop("created") is True
    assert answer.headers["location"] == "/models/m/versions/1"
    cid = document["cid"]
    assert {**document, "id": "", "created_at": "", "facts": {}} == {
        "id": "",
        "name": "m",
        "version": 1,
        "cid": str(cid_of_bytes(content)),
        "framework": "tensorflow",
        "model_type": "detection",
        "file_format": "tflite",
        "file_size": len(content),
        "description": "Größer\nals vorher.",
        "tags": ["edge", "int8", "nano"],
        "owner_id": "ann",
        "created_at": "",
        "facts": {},
        "links": {
            "self": "/models/m/versions/1",
            "download": "/models/m/versions/1/download",
            "dag": f"/models/cid/{cid}/dag",
        },
    }
    assert document["created_at"].endswith("Z")
    for path in ("/models/m", "/models/m/versions/1", f"/models/cid/{cid}"):
        assert running.get(path).json() == document
    for path in ("/models", "/models/m/versions"):
        assert running.get(path).json() == {
            "items": [document],
            "page": 1,
            "page_size": 50,
            "total": 1,
        }
    assert running.get(document["links"]["download"]).content == content


def test_same_content_again_is_answered_not_stored(running: Running) -> None:
    first = running.publish()
    again = running.publish(description="ignored")
    assert again.status_code == 200
    assert again.json() == {**first.json(), "created": False}
    assert again.headers["location"] == first.headers["location"]
    changed = running.publish(tflite(2))
    assert (changed.status_code, changed.json()["version"]) == (201, 2)


def test_fields_may_follow_the_file_and_empty_ones_are_left_out(
    running: Running,
) -> None:
    files = [
        ("file", ("m.bin", tflite())),
        ("name", (None, b"m")),
        ("file_format", (None, b"tflite")),
        ("cid", (None, b"")),
        ("tags", (None, b"")),
    ]
    answer = running.request("POST", "/models", files=files)
    assert answer.status_code == 201
    assert answer.json()["tags"] == []


BAD_FIELDS: dict[str, tuple[dict[str, Any], tuple[int, str]]] = {
    "no name": ({"name": []}, (422, "invalid_input")),
    "empty name": ({"name": ""}, (422, "invalid_name")),
    "two names": ({"name": ["a", "b"]}, (422, "invalid_input")),
    "slash": ({"name": "a/b"}, (422, "invalid_name")),
    "dots": ({"name": ".."}, (422, "invalid_name")),
    "upper case": ({"name": "Yolo"}, (422, "invalid_name")),
    "NUL": ({"name": "a\0"}, (422, "invalid_name")),
    "129 characters": ({"name": "a" * 129}, (422, "invalid_name")),
    "reserved": ({"name": "cid"}, (422, "invalid_name")),
    "unknown field": ({"fromat": "onnx"}, (422, "invalid_input")),
    "bad CID": ({"cid": "Qm123"}, (422, "invalid_cid")),
    "another CID": ({"cid": OTHER_CID}, (422, "cid_mismatch")),
    "another format": ({"file_format": "onnx"}, (422, "format_mismatch")),
    "unknown format": ({"file_format": "exe"}, (422, "format_mismatch")),
    "bad tag": ({"tags": "a\nb"}, (422, "invalid_input")),
    "bad framework": ({"framework": "<script>"}, (422, "invalid_input")),
    "many tags": ({"tags": ",".join("abcdefgh" * 10)}, (413, "too_large")),
    "long description": ({"description": "x" * 10_001}, (413, "too_large")),
    "control characters": ({"description": "\x1b[2J"}, (422, "invalid_input")),
}


@pytest.mark.parametrize("kind", BAD_FIELDS)
def test_bad_field_leaves_nothing(running: Running, kind: str) -> None:
    fields, expected = BAD_FIELDS[kind]
    assert problem(running.publish(**fields)) == expected
    running.assert_nothing_left()


@pytest.mark.parametrize(
    ("content", "filename"),
    [(b"", "m.tflite"), (b"", "m.onnx"), (b"not a model", "m.tflite"), (b"x", "m")],
)
def test_file_that_is_no_model_leaves_nothing(
    running: Running, content: bytes, filename: str
) -> None:
    assert problem(running.publish(content, filename)) == (422, "format_mismatch")
    running.assert_nothing_left()


def test_form_without_file_leaves_nothing(running: Running) -> None:
    answer = running.request("POST", "/models", files={"name": (None, b"m")})
    assert problem(answer) == (422, "invalid_input")
    assert running.request("POST", "/models", json={}).status_code == 422
    running.assert_nothing_left()


def test_body_cut_short_leaves_nothing(running: Running) -> None:
    request = httpx.Request(
        "POST", "http://x", data={"name": "m"}, files={"file": ("m.tflite", tflite())}
    )
    answer = running.request(
        "POST",
        "/models",
        content=request.read()[:-20],
        headers={"Content-Type": request.headers["content-type"]},
    )
    assert problem(answer) == (400, "incomplete_upload")
    running.assert_nothing_left()


def test_file_over_the_limit_leaves_nothing(open_gateway: OpenGateway) -> None:
    with open_gateway(max_upload_bytes=1000) as running:
        assert running.publish(tflite(1, 1000)).status_code == 201
        answer = running.publish(tflite(1, 1001), name="n")
        assert problem(answer) == (413, "too_large")
        assert answer.json()["limit"] == 1000
        assert problem(running.get("/models/n")) == (404, "not_found")
        assert not list(running.settings.spool_directory.iterdir())


def test_full_disk_leaves_nothing(open_gateway: OpenGateway) -> None:
    with open_gateway(min_free_bytes=1 << 60) as running:
        assert problem(running.publish()) == (507, "storage_full")
        running.assert_nothing_left()


def test_disk_that_fills_while_receiving_leaves_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.pwrite", full)
    assert problem(running.publish(tflite(1, 9 * MIB))) == (507, "storage_full")
    running.assert_nothing_left()


def test_line_that_another_upload_holds_is_told_to_be_busy(
    open_gateway: OpenGateway,
) -> None:
    with open_gateway(claim_wait_s=0.01) as running:
        first = running.publish().json()
        with running.gateway.database.write() as session:
            now = database_now(session)
            line = session.query(ModelRow).one()
            insert_claim(
                session,
                MODELS,
                line,
                cid=cid_of_bytes(b"x"),
                file_format="tflite",
                file_size=1,
                description="",
                tags=[],
                facts={},
                owner_id="bob",
                object_key="k",
                sidecar_key=None,
                record_key="r",
                created_at=now,
                lease_token="t",
                lease_expires_at=now.replace(year=now.year + 1),
                framework="",
                model_type="",
            )
        answer = running.publish(tflite(2))
        assert problem(answer) == (409, "upload_in_progress")
        assert int(answer.headers["retry-after"]) >= 1
        assert running.get("/models/m").json()["version"] == first["version"]


def test_list_filters_sorts_and_pages(running: Running) -> None:
    for index in range(5):
        running.publish(
            tflite(index, 100 - index),
            name=f"m{index}",
            framework="onnx" if index % 2 else "tf",
            model_type="detection",
            tags=f"t{index},all",
            description=f"Number {index}",
        )

    def names(**query: Any) -> list[str]:
        answer = running.get("/models", params=query)
        assert answer.status_code == 200, answer.text
        return [item["name"][1:] for item in answer.json()["items"]]

    assert names() == ["0", "1", "2", "3", "4"]
    assert names(sort="-name") == names(sort="size") == ["4", "3", "2", "1", "0"]
    assert names(framework="onnx") == ["1", "3"]
    assert names(model_type="other") == []
    assert names(format="tflite", tags=["all", "t2"]) == ["2"]
    assert names(tags="all,t2") == ["2"]
    assert names(owner="ann", q="NUMBER 3") == ["3"]
    answer = running.get("/models?page=2&page_size=2&owner=ann&tags=all&q=%26")
    assert answer.json()["total"] == 0
    answer = running.get("/models?page=2&page_size=2&owner=ann&tags=all")
    assert [item["name"] for item in answer.json()["items"]] == ["m2", "m3"]
    links = {
        relation: answer.links[relation]["url"]
        for relation in ("first", "prev", "next", "last")
    }
    query = "owner=ann&tags=all&page={}&page_size=2"
    assert links == {
        "first": f"/models?{query.format(1)}",
        "prev": f"/models?{query.format(1)}",
        "next": f"/models?{query.format(3)}",
        "last": f"/models?{query.format(3)}",
    }
    beyond = running.get("/models?page=999&page_size=2")
    assert beyond.json()["items"] == []
    assert beyond.links["prev"]["url"] == "/models?page=3&page_size=2"
    assert "next" not in beyond.links


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=x",
        "page=99999999999999999999",
        "page_size=0",
        "page_size=201",
        "sort=id",
        "sort=",
        "pagesize=5",
        "page=1&page=2&x[]=1",
        "q=" + "x" * 201,
        "tags=" + "a," * 65,
        "tags=a" + "&tags=a" * 64,
    ],
)
def test_bad_queries_are_refused(running: Running, query: str) -> None:
    assert problem(running.get(f"/models?{query}")) == (422, "invalid_input")


def test_unknown_parameter_is_told_which_there_are(running: Running) -> None:
    running.publish()
    for path in ("/models", "/models/m/versions"):
        detail = running.get(f"{path}?limit=3").json()["detail"]
        assert "unknown parameter 'limit'" in detail
        assert "page, page_size" in detail


def test_history_is_paged_newest_first(running: Running) -> None:
    for seed in range(3):
        running.publish(tflite(seed))
    answer = running.get("/models/m/versions?page_size=2")
    assert [item["version"] for item in answer.json()["items"]] == [3, 2]
    assert answer.json()["total"] == 3
    assert answer.links["next"]["url"] == "/models/m/versions?page=2&page_size=2"


@pytest.mark.parametrize("suffix", ["", "/versions", "/versions/1", "/download"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", (404, "not_found")),
        ("..", (422, "invalid_name")),
        ("Upper", (422, "invalid_name")),
        ("a\0", (422, "invalid_name")),
        ("a" * 129, (422, "invalid_name")),
        ("cid", (422, "invalid_name")),
    ],
)
def test_bad_and_unknown_names(
    running: Running, name: str, suffix: str, expected: tuple[int, str]
) -> None:
    # A dot segment is sent encoded, or the client resolves it.
    path = quote(name, safe="").replace(".", "%2E")
    if name == "cid" and suffix:
        expected = (422, "invalid_cid")  # /models/cid/{cid} and below
        if suffix == "/versions/1":
            expected = (422, "invalid_name")
    assert problem(running.get(f"/models/{path}{suffix}")) == expected


@pytest.mark.parametrize("suffix", ["", "/download"])
@pytest.mark.parametrize("number", ["0", "-1", "999999999999", "x", "1.0", "٣", "%00"])
def test_bad_version_numbers(running: Running, number: str, suffix: str) -> None:
    running.publish()
    answer = running.get(f"/models/m/versions/{number}{suffix}")
    assert problem(answer) == (422, "invalid_version")
    answer = running.get(f"/models/m/download?version={number}")
    assert problem(answer) == (422, "invalid_version")


@pytest.mark.parametrize("suffix", ["", "/download", "/dag"])
def test_bad_and_unknown_cids(running: Running, suffix: str) -> None:
    answer = running.get(f"/models/cid/Qm123{suffix}")
    assert problem(answer) == (422, "invalid_cid")
    answer = running.get(f"/models/cid/{OTHER_CID}{suffix}")
    assert problem(answer) == (404, "not_found")


def test_unknown_version_is_told_the_latest(running: Running) -> None:
    running.publish()
    answer = running.get("/models/m/versions/2")
    assert problem(answer) == (404, "not_found")
    assert "Its latest is 1" in answer.json()["detail"]


def test_reader_may_not_publish_and_publisher_may_not_read(running: Running) -> None:
    reader, writer = running.token("model:read"), running.token("model:write")
    refused = running.request("POST", "/models", token=reader)
    assert problem(refused) == (403, "permission_denied")
    refused = running.get("/models", token=writer)
    assert problem(refused) == (403, "permission_denied")
    assert refused.json()["scope"] == "model:read"
