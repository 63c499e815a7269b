"""Uploads in parts: what is sent, what is sent again, and when they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from tests.fakes.fake_gateway import (
    FakeGateway,
    InMemoryTransport,
    Lie,
    body,
    drop_unanswered,
    nothing,
    refuse,
)
from tests.test_sdk.conftest import MIB, MakeClient, content_of
from vision_o3 import errors
from vision_o3.content.dag import cid_of_bytes
from vision_o3.errors import TransportError
from vision_o3.sdk import upload
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.transport import HTTPTransport

PART = upload.PART_SIZE
SIZE = 3 * PART + 5
CONTENT = content_of(SIZE)
CID = str(cid_of_bytes(CONTENT))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "detector.onnx"
    path.write_bytes(CONTENT)
    return path


def parts(gateway: FakeGateway) -> List[Tuple[int, int]]:
    """Return where each part that was sent began, and its length."""
    return [
        (int(seen.path.rsplit("/", 1)[1]), int(seen.headers["content-length"]))
        for seen in gateway.seen
        if "/parts/" in seen.path
    ]


def calls(gateway: FakeGateway) -> List[str]:
    """Return what was asked, shortly."""
    return [
        f"{seen.method} {seen.path.replace(CID, 'CID')}"
        for seen in gateway.seen
        if seen.method != "GET"
    ]


class Breaking(InMemoryTransport):
    """A link that breaks within each of the first parts after so many bytes."""

    def __init__(self, gateway: FakeGateway, breaks: List[int]) -> None:
        super().__init__({gateway.url: gateway})
        self.breaks = breaks
        self.sent = 0

    def request(
        self, method: str, url: str, headers: Any, body: Any = None, bounds: Any = None
    ) -> Any:
        if "/parts/" not in url:
            return super().request(method, url, headers, body, bounds)
        content = b"".join(bytes(piece) for piece in body)
        if not self.breaks:
            self.sent += len(content)
            return super().request(method, url, headers, content, bounds)
        content = content[: self.breaks.pop(0)]
        self.sent += len(content)
        if content:
            super().request(method, url, headers, content, bounds)
        raise TransportError("The link broke.")


def test_a_large_file_goes_in_parts_that_grow(
    gateway: FakeGateway, client: VisionO3Client, model: Path
) -> None:
    info = client.upload_model(model, "m", tags=["a"])
    assert (info.cid, info.created, info.tags) == (CID, True, ("a",))
    assert gateway.published["models"][0].content == CONTENT
    assert calls(gateway) == [
        "POST /models",
        "PUT /uploads/CID",
        "PUT /uploads/CID/parts/0",
        f"PUT /uploads/CID/parts/{PART}",
        f"PUT /uploads/CID/parts/{3 * PART}",
        "POST /models",
    ]
    assert parts(gateway) == [(0, PART), (PART, 2 * PART), (3 * PART, 5)]
    for seen in gateway.seen:
        assert seen.headers["x-vision-o3-cid"] == CID
    assert b'name="filename"\r\n\r\ndetector.onnx' in gateway.seen[0].body


def test_a_part_is_never_larger_than_the_largest(
    gateway: FakeGateway,
    client: VisionO3Client,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload, "PART_SIZE", 2 * MIB)
    monkeypatch.setattr(upload, "LARGEST_PART", 8 * MIB)
    client.upload_model(model, "m")
    assert [size // MIB for _, size in parts(gateway)] == [2, 4, 8, 8, 2]


@pytest.mark.parametrize("size", [0, 100, MIB, 2 * MIB, PART])
def test_a_small_file_is_asked_for_and_goes_by_one_form(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content_of(size))
    client.upload_model(path, "m")
    assert calls(gateway) == ["POST /models"] * 2
    assert len(gateway.seen[0].body) < 1000


@pytest.mark.parametrize("size", [100, SIZE])
def test_no_byte_is_sent_of_what_is_known(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path, size: int
) -> None:
    told: List[Tuple[int, int]] = []
    client = make_client(progress=lambda *pair: told.append(pair))
    path = tmp_path / "m.onnx"
    path.write_bytes(content_of(size))
    gateway.publish("other", content_of(size))
    info = client.upload_model(path, "m")
    assert (info.name, info.version, info.created) == ("m", 1, True)
    assert client.upload_model(path, "m").created is False
    assert calls(gateway) == ["POST /models"] * 2
    assert sum(len(seen.body) for seen in gateway.seen) < 2000
    assert told == [(size, size)] * 2


@pytest.mark.parametrize("link", ["memory", "loopback"])
def test_goes_on_where_another_process_ended(
    gateway: FakeGateway, make_client: MakeClient, model: Path, link: str
) -> None:
    told: List[Tuple[int, int]] = []
    died = make_client(transport=Breaking(gateway, [PART, MIB // 2] + [0] * 9))
    with pytest.raises(TransportError):
        died.upload_model(model, "m")
    assert len(gateway.partial[CID].leaves) == PART // MIB

    def resume(**options: Any) -> None:
        client = make_client(progress=lambda *pair: told.append(pair), **options)
        before = len(gateway.seen)
        assert client.upload_model(model, "m").cid == CID
        sent = [seen for seen in gateway.seen[before:] if "/parts/" in seen.path]
        assert sum(len(seen.body) for seen in sent) == SIZE - PART

    if link == "loopback":
        with gateway.serving():
            resume(transport=HTTPTransport())
    else:
        resume()
    done = [done for done, _ in told]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (PART, SIZE)


@pytest.mark.parametrize(
    "breaks",
    [
        [0],
        [MIB - 1],
        [MIB + 1, 2 * MIB, 100],
        [PART - 1],
        [3 * MIB + 1] * 7,  # more often than attempts, but there is progress
    ],
)
def test_of_a_part_that_breaks_off_only_what_is_missing_is_sent_again(
    gateway: FakeGateway, make_client: MakeClient, model: Path, breaks: List[int]
) -> None:
    transport = Breaking(gateway, list(breaks))
    told: List[int] = []
    client = make_client(transport=transport, progress=lambda at, _: told.append(at))
    assert client.upload_model(model, "m").cid == CID
    cut = sum(count % MIB for count in breaks)
    assert SIZE <= transport.sent <= SIZE + cut
    assert told == sorted(told)
    assert told[-1] == SIZE


def test_a_link_that_carries_nothing_is_given_up(
    gateway: FakeGateway, make_client: MakeClient, model: Path
) -> None:
    transport = Breaking(gateway, [100] * 50)
    with pytest.raises(TransportError):
        make_client(transport=transport).upload_model(model, "m")
    assert len(transport.breaks) == 45


@pytest.mark.parametrize(
    "lies",
    [
        [drop_unanswered],
        [refuse(503, "gateway_busy", Retry_After="1")] * 3,
        [nothing, refuse(502)],
    ],
)
@pytest.mark.parametrize("page", [f"/uploads/{CID}", "/parts/0", f"/parts/{PART}"])
def test_what_may_pass_is_tried_again(
    gateway: FakeGateway, client: VisionO3Client, model: Path, page: str, lies: Any
) -> None:
    gateway.lie(page, *lies)
    assert client.upload_model(model, "m").cid == CID
    assert len(gateway.published["models"]) == 1


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (refuse(403, "permission_denied"), errors.PermissionDeniedError),
        (refuse(413, "too_large"), errors.LimitExceededError),
        (refuse(507, "storage_full"), errors.StorageFullError),
    ],
)
@pytest.mark.parametrize("page", [f"/uploads/{CID}", f"/parts/{PART}"])
def test_what_will_not_pass_is_not(
    gateway: FakeGateway,
    client: VisionO3Client,
    model: Path,
    page: str,
    refusal: Lie,
    error: Any,
) -> None:
    gateway.lie(page, refusal)
    with pytest.raises(error):
        client.upload_model(model, "m")
    assert gateway.count(page, "PUT") == 1


def test_damage_on_the_way_is_sent_again(
    gateway: FakeGateway, client: VisionO3Client, model: Path
) -> None:
    gateway.lie("/parts/0", refuse(422, "cid_mismatch"))
    assert client.upload_model(model, "m").cid == CID


class Meddling(InMemoryTransport):
    """Changes the file when the first part is asked for."""

    def __init__(self, gateway: FakeGateway, change: Callable[[], object]) -> None:
        super().__init__({gateway.url: gateway})
        self._change: Optional[Callable[[], object]] = change

    def request(
        self, method: str, url: str, headers: Any, body: Any = None, bounds: Any = None
    ) -> Any:
        if "/parts/" in url and self._change is not None:
            self._change()
            self._change = None
        return super().request(method, url, headers, body, bounds)


@pytest.mark.parametrize("change", ["shorter", "gone", "other", "other later"])
def test_a_file_that_changes_while_it_is_sent_is_said_so(
    gateway: FakeGateway, make_client: MakeClient, model: Path, change: str
) -> None:
    def meddle() -> None:
        if change == "gone":
            model.unlink()
        elif change == "shorter":
            model.write_bytes(CONTENT[: MIB + 1])
        else:
            at = 5 if change == "other" else SIZE - 1
            model.write_bytes(CONTENT[:at] + b"?" + CONTENT[at + 1 :])

    client = make_client(transport=Meddling(gateway, meddle))
    with pytest.raises(errors.InputError, match=r"changed|shorter|cannot be read"):
        client.upload_model(model, "m")
    assert gateway.published["models"] == []


class Scattering(InMemoryTransport):
    """Sends requests to several gateways in turn, as a load balancer does."""

    def __init__(self, gateways: List[FakeGateway], *, sticky: bool) -> None:
        super().__init__({})
        self._all = gateways
        self._sticky = sticky
        self._turn = 0

    def request(
        self, method: str, url: str, headers: Any, body: Any = None, bounds: Any = None
    ) -> Any:
        if not (self._sticky and "X-Vision-O3-CID" in headers):
            self._turn += 1
        chosen = self._all[self._turn % len(self._all)]
        self._gateways = {"http://gateway.test": chosen}
        return super().request(method, url, headers, body, bounds)


@pytest.mark.parametrize("sticky", [True, False])
def test_ends_behind_a_load_balancer(
    gateway: FakeGateway, make_client: MakeClient, model: Path, *, sticky: bool
) -> None:
    others = [FakeGateway(), FakeGateway()]
    transport = Scattering([gateway, *others], sticky=sticky)
    assert make_client(transport=transport).upload_model(model, "m").cid == CID
    published = [p for each in (gateway, *others) for p in each.published["models"]]
    assert [each.content for each in published] == [CONTENT]
    forms = sum(
        b'name="file"' in seen.body[:2000]
        for each in (gateway, *others)
        for seen in each.seen
    )
    assert forms == (0 if sticky else 1)


def test_a_gateway_that_forgets_gets_all_again_then_a_form(
    gateway: FakeGateway, client: VisionO3Client, model: Path
) -> None:
    gateway.lie("/models", *[refuse(409, "content_needed")] * 4)
    assert client.upload_model(model, "m").cid == CID
    assert gateway.count(f"/uploads/{CID}", "PUT") == 3
    assert b'name="file"' in gateway.seen[-1].body[:2000]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_form_serves_where_no_parts_are_taken(
    gateway: FakeGateway, client: VisionO3Client, model: Path, status: int
) -> None:
    gateway.lie(f"/uploads/{CID}", refuse(status))
    assert client.upload_model(model, "m").cid == CID
    assert b'name="file"' in gateway.seen[-1].body[:2000]


def bad_answers() -> Iterator[Any]:
    yield {}
    yield {"missing": 5}
    yield {"missing": [[0]]}
    yield {"missing": [[0, "x"]]}
    yield {"missing": [[True, MIB]]}
    yield {"missing": [[-MIB, MIB]]}
    yield {"missing": [[0, SIZE + MIB]]}
    yield {"missing": [[1, MIB]]}
    yield {"missing": [[0, MIB + 1]]}
    yield {"missing": [[MIB, MIB]]}
    yield {"missing": [[MIB, 2 * MIB], [0, MIB]]}


@pytest.mark.parametrize("answer", list(bad_answers()))
def test_an_answer_that_makes_no_sense_is_refused(
    gateway: FakeGateway, client: VisionO3Client, model: Path, answer: Any
) -> None:
    lie: Lie = body(json.dumps(answer).encode())
    gateway.lie(f"/uploads/{CID}", lie)
    with pytest.raises(TransportError, match="not understood"):
        client.upload_model(model, "m")
