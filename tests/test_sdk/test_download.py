"""A source that lies: the device ends with right bytes or a clear error."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from tests.fakes.fake_gateway import (
    FakeGateway,
    Lie,
    body,
    chunked,
    cut,
    drop,
    drop_unanswered,
    endless,
    extra,
    flip,
    header,
    nothing,
    redirect,
    refuse,
    stall,
    whole,
)
from tests.test_sdk.conftest import (
    MIB,
    FakeClock,
    MakeClient,
    cached_files,
    content_of,
)
from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.content.leaves import LeafTable
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.download import fetch
from vision_o3.sdk.transport import HTTPTransport

LARGE = content_of(5 * MIB + 12345)
SIZES = [0, 1, 1000, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 12345]


def partial_files(tmp_path: Path) -> List[Path]:
    return list((tmp_path / "cache" / "partial").glob("*"))


@pytest.fixture(params=["memory", "loopback"])
def any_client(
    request: pytest.FixtureRequest, gateway: FakeGateway, make_client: MakeClient
) -> Any:
    """A client of the gateway, in memory and over real connections."""
    if request.param == "memory":
        yield make_client()
        return
    transport = HTTPTransport(read_timeout_s=0.1)
    with gateway.serving(), make_client(transport=transport) as client:
        yield client


@pytest.mark.parametrize("size", SIZES)
def test_fetches_every_size(
    gateway: FakeGateway, any_client: VisionO3Client, size: int
) -> None:
    document = gateway.publish("m", content_of(size))
    path = any_client.download_model("m")
    assert path.read_bytes() == content_of(size)
    assert path.name == "m.onnx"
    assert path.parent.name == document["cid"]


@pytest.mark.parametrize(("size", "requests"), [(0, 0), (1, 1), (MIB, 1)])
def test_one_request_for_a_file_of_one_leaf(
    gateway: FakeGateway, client: VisionO3Client, size: int, requests: int
) -> None:
    gateway.publish("m", content_of(size))
    client.download_model("m")
    assert gateway.count("/download") == requests
    assert gateway.count("/dag") == 0


def test_tells_progress_of_verified_bytes(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    seen: List[Tuple[int, int]] = []
    gateway.publish("m", LARGE)
    gateway.lie("/download", flip(3 * MIB))
    make_client(progress=lambda *pair: seen.append(pair)).download_model("m")
    ends = [MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, len(LARGE)]
    assert seen == [(end, len(LARGE)) for end in ends]


# Lies that pass: the right bytes are got in the end


@pytest.mark.parametrize("offset", [0, 1, MIB - 1, MIB, 3 * MIB + 5, len(LARGE) - 1])
def test_a_wrong_leaf_is_asked_for_again(
    gateway: FakeGateway, any_client: VisionO3Client, clock: FakeClock, offset: int
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", flip(offset))
    assert any_client.download_model("m").read_bytes() == LARGE
    start = offset // MIB * MIB
    asked = [s.headers.get("range") for s in gateway.seen if "download" in s.path]
    assert asked == [None, f"bytes={start}-{len(LARGE) - 1}" if start else None]
    assert clock.slept == []


@pytest.mark.parametrize(
    "lie",
    [
        cut(1),
        cut(2 * MIB),
        extra(b"x"),
        extra(LARGE),
        header("Content-Length", "7"),
        body(b""),
        body(content_of(len(LARGE), seed=2)),
        body(b"\0" * len(LARGE)),
        header("Content-Length", str(2 * len(LARGE))),
    ],
)
def test_wrong_bodies_are_asked_for_again(
    gateway: FakeGateway, any_client: VisionO3Client, lie: Lie
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", lie)
    assert any_client.download_model("m").read_bytes() == LARGE


@pytest.mark.parametrize(
    "after", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5, len(LARGE) - 1]
)
@pytest.mark.parametrize("fault", [drop, stall])
def test_goes_on_at_the_first_leaf_that_is_missing(
    gateway: FakeGateway,
    any_client: VisionO3Client,
    clock: FakeClock,
    after: int,
    fault: Any,
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", fault(after))
    assert any_client.download_model("m").read_bytes() == LARGE
    start = after // MIB * MIB
    asked = [s.headers.get("range") for s in gateway.seen if "download" in s.path]
    assert asked == [None, f"bytes={start}-{len(LARGE) - 1}" if start else None]
    assert len(clock.slept) == 1


def test_a_link_that_drops_all_the_time_gets_there(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", drop(MIB + 9), times=9)
    assert client.download_model("m").read_bytes() == LARGE
    assert gateway.count("/download") == 6


@pytest.mark.parametrize(
    "lie",
    [drop_unanswered, refuse(503), refuse(429, None, Retry_After="3"), refuse(502)],
)
def test_failures_before_and_within_a_transfer_pass(
    gateway: FakeGateway, any_client: VisionO3Client, clock: FakeClock, lie: Lie
) -> None:
    gateway.publish("m", LARGE)
    for ending in ("/m", "/dag", "/download"):
        gateway.lie(ending, lie, lie)
    assert any_client.download_model("m").read_bytes() == LARGE
    assert len(clock.slept) >= 3


def test_a_body_of_unknown_length_is_taken(
    gateway: FakeGateway, any_client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", chunked)
    gateway.lie("/dag", chunked)
    assert any_client.download_model("m").read_bytes() == LARGE


def test_an_endless_body_is_read_no_further_than_the_file(
    gateway: FakeGateway, any_client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", endless)
    assert any_client.download_model("m").read_bytes() == LARGE


def test_a_server_without_ranges_is_enough(
    gateway: FakeGateway, any_client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", drop(2 * MIB + 5), whole(LARGE))
    assert any_client.download_model("m").read_bytes() == LARGE


@pytest.mark.parametrize(
    "lie",
    [
        header("Content-Range", "bytes 0-9/10"),
        header("Content-Range", f"bytes {MIB}-{len(LARGE) - 1}/{len(LARGE)}"),
        header("Content-Range", f"bytes {2 * MIB}-{len(LARGE) - 1}/*"),
        header("Content-Range", ""),
        header("Content-Length", "5"),
        whole(LARGE[:-1]),
        body(LARGE[: 3 * MIB + 12345]),
    ],
)
def test_a_wrong_range_is_asked_for_again(
    gateway: FakeGateway, any_client: VisionO3Client, lie: Lie
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", drop(2 * MIB + 5), lie)
    assert any_client.download_model("m").read_bytes() == LARGE


def test_bytes_may_come_from_another_host(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    store = FakeGateway()
    gateway.publish("m", LARGE)
    store.publish("m", LARGE)
    with gateway.serving(), store.serving():
        gateway.lie("/download", redirect(f"{store.url}/models/m/download"))
        with make_client(api_token="t", transport=None) as client:
            assert client.download_model("m").read_bytes() == LARGE
    assert store.count("/download") == 1
    assert "authorization" not in store.seen[0].headers


# Lies that do not pass: a clear error, and nothing of them is kept


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (flip(0), errors.DigestMismatchError),
        (flip(-1), errors.DigestMismatchError),
        (cut(1), errors.LengthMismatchError),
        (extra(b"x"), errors.LengthMismatchError),
        (body(b"\0" * len(LARGE)), errors.DigestMismatchError),
        (header("Content-Encoding", "br"), errors.TransportError),
        (refuse(404, "not_found"), errors.NotFoundError),
        (refuse(403, "permission_denied"), errors.PermissionDeniedError),
        (refuse(416, "invalid_range"), errors.InvalidRangeError),
        (refuse(502, "digest_mismatch"), errors.DigestMismatchError),
        (refuse(204), errors.TransportError),
        (drop_unanswered, errors.TransportError),
        (drop(5), errors.TransportError),
        (redirect("file:///etc/passwd"), errors.TransportError),
    ],
)
def test_a_source_that_goes_on_lying_is_refused(
    gateway: FakeGateway,
    any_client: VisionO3Client,
    tmp_path: Path,
    lie: Lie,
    error: Any,
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", lie, times=50)
    with pytest.raises(error):
        any_client.download_model("m")
    assert cached_files(tmp_path / "cache") == []
    assert gateway.count("/download") <= 6


@pytest.mark.parametrize(
    "lie", [flip(0), cut(1), body(b""), body(content_of(1000, seed=5)), extra(b"!")]
)
def test_a_small_wrong_file_is_refused(
    gateway: FakeGateway, any_client: VisionO3Client, tmp_path: Path, lie: Lie
) -> None:
    gateway.publish("m", content_of(1000))
    gateway.lie("/download", lie, times=50)
    with pytest.raises(errors.IntegrityError):
        any_client.download_model("m")
    assert cached_files(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "lie", [flip(0), flip(70), flip(-1), cut(1), extra(b"\0"), body(b""), extra(LARGE)]
)
def test_a_wrong_sidecar(
    gateway: FakeGateway, any_client: VisionO3Client, tmp_path: Path, lie: Lie
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/dag", lie, lie)
    assert any_client.download_model("m").read_bytes() == LARGE
    any_client.clear_cache()
    gateway.lie("/dag", lie, times=50)
    with pytest.raises(errors.IntegrityError):
        any_client.download_model("m")
    assert gateway.count("/download") == 1
    assert cached_files(tmp_path / "cache") == []


def test_an_endless_sidecar_is_not_read(
    gateway: FakeGateway, any_client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/dag", endless, times=9)
    with pytest.raises(errors.IntegrityError):
        any_client.download_model("m")


@pytest.mark.parametrize(
    ("size", "claimed"), [(10, 0), (10, 11), (10, 2 * MIB), (len(LARGE), 1 << 50)]
)
def test_a_wrong_size_is_refused(
    gateway: FakeGateway, client: VisionO3Client, size: int, claimed: int
) -> None:
    gateway.publish("m", content_of(size), file_size=claimed)
    with pytest.raises(errors.IntegrityError):
        client.download_model("m")


def test_the_gateway_tells_of_its_own_damage_midway(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", drop(2 * MIB), refuse(502, "digest_mismatch"))
    with pytest.raises(errors.DigestMismatchError) as caught:
        client.download_model("m")
    assert caught.value.values["request_id"] == "r-1"
    assert gateway.count("/download") == 2


def test_a_wrong_leaf_in_each_answer_still_ends(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", flip(MIB), times=99)
    assert client.download_model("m").read_bytes() == LARGE
    assert gateway.count("/download") == 6


def test_an_interrupted_transfer_leaves_nothing(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    gateway.publish("m", LARGE)
    with pytest.raises(KeyboardInterrupt):
        make_client(progress=stop).download_model("m")
    assert partial_files(tmp_path) == []
    assert gateway.count("/download") == 1


def test_an_unforeseen_error_while_verifying_is_passed_on(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    class Failing(LeafTable):
        def verify(self, *_: object) -> None:
            raise MemoryError

    document = gateway.publish("m", b"abc")
    cid = CID.parse(document["cid"])
    table = Failing(cid, 3, MIB, cid.digest)
    with (tmp_path / "f").open("wb") as file, pytest.raises(MemoryError):
        fetch(client._session, "/models/m/download", table, file.fileno())


def test_memory_is_a_handful_of_buffers(
    served: FakeGateway, make_client: MakeClient
) -> None:
    content = content_of(64 * MIB)
    served.publish("m", content)
    client = make_client(transport=None)
    info = client.get_model_info("m")
    tracemalloc.start()
    try:
        client.download(info)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


def test_lies_are_counted_in_order(gateway: FakeGateway) -> None:
    gateway.publish("m", b"ab")
    gateway.lie("/download", nothing, flip(0))
    bodies = [
        gateway.answer("GET", "/models/m/download", {}, b"").body for _ in range(3)
    ]
    assert bodies == [b"ab", b"`b", b"ab"]
    assert gateway.body_bytes == 6
