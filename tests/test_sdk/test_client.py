from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from tests.fakes.fake_gateway import (
    FakeGateway,
    InMemoryTransport,
    body,
    drop_unanswered,
    header,
    nothing,
    refuse,
)
from tests.test_sdk.conftest import MIB, MakeClient, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.transport import HTTPTransport

OFFLINE = InMemoryTransport({})


# Finding


def test_lists_all_pages(gateway: FakeGateway, client: VisionO3Client) -> None:
    gateway.page_size = 2
    for name in "abcde":
        gateway.publish(name, name.encode())
    assert [model.name for model in client.list_models()] == list("abcde")
    assert gateway.count("/models") == 3


def test_iterators_ask_for_a_page_when_it_is_needed(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.page_size = 2
    for name in "abcde":
        gateway.publish(name, name.encode())
        gateway.publish(name, name.encode(), "datasets")
    models = client.iter_models()
    assert gateway.count("/models") == 0
    assert [next(models).name for _ in range(3)] == ["a", "b", "c"]
    assert gateway.count("/models") == 2
    assert [model.name for model in models] == ["d", "e"]
    assert [each.name for each in client.iter_datasets()] == list("abcde")


def test_lists_nothing(client: VisionO3Client) -> None:
    assert client.list_models() == []


def test_a_list_that_shrinks_while_it_is_read_ends(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.lie("/models", body(b'{"items": [], "total": 9}'))
    assert client.list_models() == []


def test_filters(gateway: FakeGateway, client: VisionO3Client) -> None:
    gateway.publish("a", b"1", tags=["x", "y"])
    gateway.publish("b", b"2", tags=["x"])
    gateway.publish("c", b"3", framework="pytorch")
    assert [m.name for m in client.list_models({"framework": "pytorch"})] == ["c"]
    assert [m.name for m in client.list_models({"tags": ["x", "y"]})] == ["a"]
    assert [m.name for m in client.list_models({"tags": "x"})] == ["a", "b"]


@pytest.mark.parametrize("answer", [b"{}", b'{"items": 5, "total": 5}'])
def test_what_is_no_list(
    gateway: FakeGateway, client: VisionO3Client, answer: bytes
) -> None:
    gateway.lie("/models", body(answer))
    with pytest.raises(errors.TransportError, match="not understood"):
        client.list_models()


def test_info_of_latest_and_of_a_version(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", b"one")
    gateway.publish("m", b"two")
    assert client.get_model_info("m").version == 2
    assert client.get_model_info("m", 1).cid == str(cid_of_bytes(b"one"))


@pytest.mark.parametrize("name", ["", "../x", "M", "a/b", "cid", "a" * 129])
def test_bad_names_do_not_reach_the_gateway(
    gateway: FakeGateway, client: VisionO3Client, name: str
) -> None:
    with pytest.raises(errors.InvalidNameError):
        client.download_model(name)
    assert gateway.seen == []


@pytest.mark.parametrize("version", [0, -1, 999999999999])
def test_bad_versions_do_not_reach_the_gateway(
    gateway: FakeGateway, client: VisionO3Client, version: int
) -> None:
    with pytest.raises(errors.InvalidVersionError):
        client.get_model_info("m", version)
    assert gateway.seen == []


def test_unknown_names_and_versions(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", b"x")
    for arguments in (("n",), ("m", 2)):
        with pytest.raises(errors.NotFoundError):
            client.get_model_info(*arguments)


@pytest.mark.parametrize("changes", [{"name": "other"}, {"version": 7}])
def test_an_answer_about_something_else_is_refused(
    gateway: FakeGateway, client: VisionO3Client, changes: Any
) -> None:
    document = gateway.publish("m", b"x")
    document.update(changes)
    path = "/models/m/versions/1"
    gateway.lie(path, body(json.dumps(document).encode()))
    gateway.published["models"][0].document.update(name="m", version=1)
    document = {**document, **changes}
    with pytest.raises(errors.TransportError, match="it is about"):
        client.get_model_info("m", 1)


# Cache and network


def test_a_second_download_needs_no_bytes(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", content_of(3 * MIB))
    first = client.download_model("m")
    asked = gateway.count("/download")
    assert client.download_model("m") == first
    assert (gateway.count("/download"), gateway.count("/dag")) == (asked, 1)
    assert client.get_cache_size() == 3 * MIB
    client.clear_cache()
    assert client.get_cache_size() == 0
    assert client.download_model("m") == first
    assert gateway.count("/download") > asked


def test_name_version_and_cid_lead_to_the_same_file(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    document = gateway.publish("m", b"abc")
    paths = {
        client.download_model("m"),
        client.download_model("m", 1),
        client.download_model_by_cid(document["cid"]),
    }
    assert len(paths) == 1
    assert gateway.count("/download") == 1


def test_by_cid_from_nothing(gateway: FakeGateway, client: VisionO3Client) -> None:
    document = gateway.publish("m", b"abc")
    assert client.download_model_by_cid(document["cid"]).name == "m.onnx"


def test_by_cid_unknown_or_wrong(client: VisionO3Client) -> None:
    with pytest.raises(errors.NotFoundError):
        client.download_model_by_cid(str(cid_of_bytes(b"unknown")))
    with pytest.raises(errors.InvalidCIDError):
        client.download_model_by_cid("../../etc")


def test_by_cid_an_answer_about_another_is_refused(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    other = gateway.publish("n", b"def")
    cid = gateway.publish("m", b"abc")["cid"]
    gateway.lie(cid, body(json.dumps(other).encode()))
    with pytest.raises(errors.TransportError, match="it is about"):
        client.download_model_by_cid(cid)


def test_two_names_of_one_content_are_fetched_once(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("a", b"abc")
    gateway.publish("b", b"abc")
    assert client.download_model("a").name == "a.onnx"
    assert client.download_model("b").name == "b.onnx"
    assert gateway.count("/download") == 1


def test_a_rotten_copy_is_fetched_anew(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", b"abc")
    path = client.download_model("m")
    path.write_bytes(b"abd")
    assert client.download_model("m", verify=False).read_bytes() == b"abd"
    assert client.download_model("m").read_bytes() == b"abc"
    assert gateway.count("/download") == 2


def test_fetched_bytes_are_verified_whatever_verify_says(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", b"abc")
    gateway.lie("/download", body(b"abd"), times=9)
    with pytest.raises(errors.DigestMismatchError):
        client.download_model("m", verify=False)


def test_old_artifacts_give_way(gateway: FakeGateway, make_client: MakeClient) -> None:
    client = make_client(max_cache_bytes=5000)
    for name in ("a", "b", "c"):
        gateway.publish(name, content_of(3000, seed=ord(name)))
        client.download_model(name)
    assert client.get_cache_size() == 3000


def test_a_pinned_version_and_a_cid_need_no_network(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    cid = gateway.publish("m", b"abc")["cid"]
    path = make_client().download_model("m", 1)
    offline = make_client(transport=OFFLINE)
    assert offline.download_model("m", 1) == path
    assert offline.download_model_by_cid(cid) == path
    assert not offline.get_model_info("m", 1).stale


def test_a_cid_that_was_resolved_needs_only_bytes(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    cid = gateway.publish("m", b"abc")["cid"]
    client.download_model_by_cid(cid).unlink()
    client.download_model_by_cid(cid)
    assert gateway.count(cid) == 1


def test_latest_falls_back_to_the_last_answer_and_says_so(
    gateway: FakeGateway, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.publish("m", b"abc")
    path = make_client().download_model("m")
    offline = make_client(transport=OFFLINE)
    with caplog.at_level(logging.WARNING):
        assert offline.download_model("m") == path
    assert "Version 1 of m was the latest" in caplog.text
    assert offline.get_model_info("m").stale
    assert offline.get_model_info("m").document()["stale"] is True


def test_latest_offline_without_a_last_answer(make_client: MakeClient) -> None:
    with pytest.raises(errors.TransportError, match="cannot be reached"):
        make_client(transport=OFFLINE).download_model("m")


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "unauthenticated"), (404, "not_found"), (500, "internal")],
)
def test_a_refusal_is_not_hidden_by_the_last_answer(
    gateway: FakeGateway, client: VisionO3Client, status: int, code: str
) -> None:
    gateway.publish("m", b"abc")
    client.download_model("m")
    gateway.lie("/models/m", refuse(status, code), times=9)
    with pytest.raises(errors.VisionO3Error):
        client.download_model("m")


def test_damaged_knowledge_is_asked_for_again(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    gateway.publish("m", b"abc")
    client.download_model("m", 1)
    (path,) = (tmp_path / "cache").rglob("m@1.json")
    path.write_text('{"name": "../x"}')
    assert client.get_model_info("m", 1).name == "m"
    assert gateway.count("/versions/1") == 2


def test_a_version_that_changed_is_refused(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", b"abc")
    client.get_model_info("m")
    gateway.published["models"].clear()
    gateway.publish("m", b"something else")
    with pytest.raises(errors.IntegrityError, match="Versions never change"):
        client.get_model_info("m")
    client.clear_cache()
    client.get_model_info("m")


def test_a_read_only_cache_still_serves(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    gateway.publish("m", b"abc")
    path = make_client().download_model("m")
    directories = [path.parent, path.parent.parent, tmp_path / "cache"]
    for directory in directories:
        directory.chmod(0o555)
    try:
        assert make_client(transport=OFFLINE).download_model("m", 1) == path
    finally:
        for directory in directories:
            directory.chmod(0o755)


def test_datasets_are_the_same_machinery(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    path = tmp_path / "d.zip"
    path.write_bytes(content_of(2 * MIB))
    info = client.upload_dataset(path, "d", file_format="zip", tags=["a"])
    assert (info.version, info.format, info.tags) == (1, "zip", ("a",))
    assert client.list_datasets()[0].name == "d"
    assert client.get_dataset_info("d", 1).cid == info.cid
    fetched = client.download_dataset("d")
    assert fetched.name == "d.zip"
    assert fetched.read_bytes() == path.read_bytes()
    assert client.download_dataset_by_cid(info.cid) == fetched
    assert gateway.published["models"] == []


# Uploads


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "detector.onnx"
    path.write_bytes(content_of(2 * MIB + 7))
    return path


@pytest.fixture(params=["memory", "loopback"])
def any_client(
    request: pytest.FixtureRequest, gateway: FakeGateway, make_client: MakeClient
) -> Any:
    if request.param == "memory":
        yield make_client()
        return
    with gateway.serving(), make_client(transport=HTTPTransport()) as client:
        yield client


def test_publishes(
    gateway: FakeGateway, any_client: VisionO3Client, model: Path
) -> None:
    info = any_client.upload_model(
        model,
        "m",
        framework="onnx",
        model_type="detection",
        description="Größe: 3 × 3",
        tags=["a", "b"],
    )
    (published,) = gateway.published["models"]
    assert published.content == model.read_bytes()
    assert (info.created, info.version) == (True, 1)
    assert info.description == "Größe: 3 × 3"
    assert info.tags == ("a", "b")
    assert info.cid == str(published.dag.root)
    assert b'filename="detector.onnx"' in gateway.seen[-1].body
    assert b'name="file_format"' not in gateway.seen[-1].body


def test_publishing_the_same_again_is_answered(
    client: VisionO3Client, model: Path
) -> None:
    assert client.upload_model(model, "m").created
    assert client.upload_model(str(model), "m").created is False


@pytest.mark.parametrize(
    "lies",
    [
        [drop_unanswered] * 2,
        [refuse(503, "storage_unavailable", Retry_After="1")] * 2,
        [refuse(409, "upload_in_progress", Retry_After="2")] * 2,
        [nothing, drop_unanswered, header("Content-Length", "999999")],
    ],
)
def test_publishing_is_tried_again_and_happens_once(
    gateway: FakeGateway, any_client: VisionO3Client, model: Path, lies: Any
) -> None:
    gateway.lie("/models", *lies)
    assert any_client.upload_model(model, "m").version == 1
    assert gateway.count("/models", "POST") == 4
    assert len(gateway.published["models"]) == 1


def test_an_empty_file_is_for_the_gateway_to_refuse(
    client: VisionO3Client, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    assert client.upload_model(path, "m").file_size == 0


def test_tells_progress_of_the_file(make_client: MakeClient, model: Path) -> None:
    seen: List[Tuple[int, int]] = []
    client = make_client(progress=lambda *pair: seen.append(pair))
    client.upload_model(model, "m")
    size = 2 * MIB + 7
    assert seen == [(MIB, size), (2 * MIB, size), (size, size)]


def test_a_declared_cid_is_checked_before_anything_is_sent(
    gateway: FakeGateway, client: VisionO3Client, model: Path
) -> None:
    with pytest.raises(errors.CIDMismatchError):
        client.upload_model(model, "m", cid=str(cid_of_bytes(b"x")))
    with pytest.raises(errors.InvalidCIDError):
        client.upload_model(model, "m", cid="x")
    with pytest.raises(errors.InvalidNameError):
        client.upload_model(model, "M")
    assert gateway.seen == []
    declared = str(cid_of_bytes(model.read_bytes()))
    assert client.upload_model(model, "m", cid=declared).cid == declared


def test_a_file_that_is_not_there(client: VisionO3Client, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="cannot be read"):
        client.upload_model(tmp_path / "x.onnx", "m")


class Meddling(InMemoryTransport):
    """Changes the file after it was hashed."""

    def __init__(self, gateway: FakeGateway, path: Path, content: Any) -> None:
        super().__init__({gateway.url: gateway})
        self._path = path
        self._content = content

    def request(self, *arguments: Any, **more: Any) -> Any:
        if self._content is None:
            self._path.unlink(missing_ok=True)
        else:
            self._path.write_bytes(self._content)
        return super().request(*arguments, **more)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"short", errors.InputError),
        (None, errors.InputError),
        (b"y" * (2 * MIB + 7), errors.CIDMismatchError),
    ],
)
def test_a_file_that_changes_meanwhile(
    gateway: FakeGateway,
    make_client: MakeClient,
    model: Path,
    content: Any,
    error: Any,
) -> None:
    client = make_client(transport=Meddling(gateway, model, content))
    with pytest.raises(error):
        client.upload_model(model, "m")
    assert gateway.published["models"] == []


def test_an_answer_about_other_content_is_refused(
    gateway: FakeGateway, client: VisionO3Client, model: Path
) -> None:
    other = json.dumps(gateway.publish("m", b"other"))
    gateway.lie("/models", nothing, body(other.encode()))
    with pytest.raises(errors.TransportError, match="it is about"):
        client.upload_model(model, "m")


@pytest.mark.parametrize("name", ['a"b.onnx', "a\r\nb.onnx", "größe.onnx"])
def test_odd_file_names_do_not_break_the_form(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"abc")
    assert client.upload_model(path, "m").cid == str(cid_of_bytes(b"abc"))
    assert b'.onnx"\r\nContent-Type' in gateway.seen[-1].body


# The rest


def test_refuses_a_bad_url() -> None:
    with pytest.raises(errors.InputError, match="URL"):
        VisionO3Client("models.example.com")


def test_signs_in_with_credentials(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.users = {"camera": "secret"}
    client = make_client(credentials=("camera", "secret"))
    assert client.sign_in().scope == "model:read"
    assert client.list_models() == []
    assert gateway.count("/auth/token", "POST") == 1


def test_closing_lets_go_of_connections(gateway: FakeGateway) -> None:
    transport = InMemoryTransport({gateway.url: gateway})
    with VisionO3Client(gateway.url, transport=transport):
        pass
    assert transport.closed == 1
