"""A source that lies: the device ends with right bytes or a clear error."""

from __future__ import annotations

import threading
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
from vision_o3.sdk.download import LONGEST_RUN, Transfer, fetch
from vision_o3.sdk.retry import RetryPolicy
from vision_o3.sdk.sources import GatewaySource
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


@pytest.mark.parametrize("connections", [1, 4])
def test_tells_progress_of_verified_bytes(
    gateway: FakeGateway, make_client: MakeClient, connections: int
) -> None:
    seen: List[Tuple[int, int]] = []
    threads = set()

    def show(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.current_thread())

    gateway.publish("m", LARGE)
    gateway.lie("/download", nothing, flip(3))
    client = make_client(progress=show, connections=connections)
    client.download_model("m")
    assert seen == sorted(set(seen))
    assert seen[-1] == (len(LARGE), len(LARGE))
    assert {total for _, total in seen} == {len(LARGE)}
    assert threads == {threading.current_thread()}
    ends = {MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, len(LARGE)}
    assert connections > 1 or {done for done, _ in seen} == ends


# Lies that pass: the right bytes are got in the end


RUNS = [(0, 1), (1, 3), (3, 6)]
"""What one connection asks for of ``LARGE``: first and last leaf, with none wrong."""


def asked_runs(gateway: FakeGateway) -> List[Tuple[int, int]]:
    """Return the runs of leaves that were asked for."""
    runs = []
    for seen in gateway.seen:
        if "download" in seen.path:
            first, _, last = seen.headers["range"][len("bytes=") :].partition("-")
            runs.append((int(first) // MIB, -(-(int(last) + 1) // MIB)))
    return runs


@pytest.mark.parametrize("leaf", range(6))
@pytest.mark.parametrize("place", [0, 1, 12344])
def test_a_wrong_leaf_is_asked_for_again(
    gateway: FakeGateway,
    make_client: MakeClient,
    clock: FakeClock,
    leaf: int,
    place: int,
) -> None:
    gateway.publish("m", LARGE)
    number = next(n for n, (_, end) in enumerate(RUNS) if leaf < end)
    offset = (leaf - RUNS[number][0]) * MIB + place
    gateway.lie("/download", *[nothing] * number, flip(offset))
    path = make_client(connections=1).download_model("m")
    assert path.read_bytes() == LARGE
    asked = asked_runs(gateway)
    assert asked[: number + 1] == RUNS[: number + 1]
    assert asked[number + 1][0] == leaf
    assert clock.slept == []


@pytest.mark.parametrize("offset", [0, 1, MIB - 1, MIB])
def test_wrong_leaves_are_asked_for_again_on_all_connections(
    gateway: FakeGateway, any_client: VisionO3Client, offset: int
) -> None:
    content = content_of(20 * MIB)
    gateway.publish("m", content)
    gateway.lie("/download", flip(offset), nothing, flip(offset), flip(offset))
    assert any_client.download_model("m").read_bytes() == content


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
    ("after", "leaf"), [(0, 3), (1, 3), (MIB - 1, 3), (MIB, 4), (2 * MIB + 9, 5)]
)
@pytest.mark.parametrize("fault", [drop, stall])
def test_goes_on_at_the_first_leaf_that_is_missing(
    gateway: FakeGateway,
    make_client: MakeClient,
    clock: FakeClock,
    after: int,
    leaf: int,
    fault: Any,
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", nothing, nothing, fault(after))
    path = make_client(connections=1).download_model("m")
    assert path.read_bytes() == LARGE
    asked = asked_runs(gateway)
    assert asked[:3] == RUNS
    assert asked[3][0] == leaf
    assert 0 < sum(clock.slept) <= RetryPolicy().base_s


@pytest.mark.parametrize("fault", [drop, stall])
def test_goes_on_with_all_connections(
    gateway: FakeGateway, any_client: VisionO3Client, fault: Any
) -> None:
    content = content_of(20 * MIB)
    gateway.publish("m", content)
    gateway.lie("/download", fault(5), nothing, *[fault(MIB + 7)] * 4)
    assert any_client.download_model("m").read_bytes() == content
    leaves = sum(end - start for start, end in asked_runs(gateway))
    assert leaves <= 20 + 5 * LONGEST_RUN


def test_right_leaves_of_a_failed_transfer_are_not_fetched_again(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", nothing, nothing, refuse(404, "not_found"))
    with pytest.raises(errors.NotFoundError):
        make_client(connections=1).download_model("m")
    (partial,) = partial_files(tmp_path)
    assert partial.read_bytes() == LARGE[: 3 * MIB]
    rotten = bytearray(LARGE[: 3 * MIB])
    rotten[MIB] ^= 1
    partial.write_bytes(rotten + b"left by others" * MIB)
    gateway.seen.clear()
    path = make_client(connections=1).download_model("m")
    assert path.read_bytes() == LARGE
    assert asked_runs(gateway) == [(1, 2), (3, 5), (5, 6)]
    assert partial_files(tmp_path) == []


def test_a_link_that_drops_all_the_time_gets_there(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", nothing, *[drop(MIB + 9)] * 9)
    path = make_client(connections=1).download_model("m")
    assert path.read_bytes() == LARGE
    assert gateway.count("/download") <= 8


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
        moved = redirect(f"{store.url}/models/m/download?signature=1")
        gateway.lie("/download", moved, times=2)
        store.lie("/download", nothing, refuse(403))  # the signature has expired
        options = {"api_token": "t", "transport": None, "connections": 1}
        with make_client(**options) as client:
            assert client.download_model("m").read_bytes() == LARGE
    assert gateway.count("/download") == 2
    assert asked_runs(store) == [RUNS[0], RUNS[1], RUNS[1], RUNS[2]]
    assert not any("authorization" in seen.headers for seen in store.seen)


# Lies that do not pass: a clear error, and nothing of them is kept


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (flip(0), errors.DigestMismatchError),
        (flip(-1), errors.DigestMismatchError),
        (cut(1), errors.LengthMismatchError),
        (extra(b"x"), errors.LengthMismatchError),
        (body(b"\0" * len(LARGE)), errors.LengthMismatchError),
        (body(b"\0" * MIB), errors.IntegrityError),
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
    before = gateway.count("/download")
    with pytest.raises(errors.IntegrityError):
        any_client.download_model("m")
    assert gateway.count("/download") == before
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
    gateway.lie("/download", nothing, refuse(502, "digest_mismatch"), times=9)
    with pytest.raises(errors.DigestMismatchError) as caught:
        client.download_model("m")
    assert caught.value.values["request_id"] == "r-1"


def test_a_wrong_leaf_in_each_answer_still_ends(
    gateway: FakeGateway, client: VisionO3Client
) -> None:
    gateway.publish("m", LARGE)
    gateway.lie("/download", flip(MIB), times=99)
    assert client.download_model("m").read_bytes() == LARGE
    assert gateway.count("/download") <= 8


@pytest.mark.parametrize("connections", [1, 4])
def test_an_interrupted_transfer_goes_on_next_time(
    gateway: FakeGateway, make_client: MakeClient, tmp_path: Path, connections: int
) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    gateway.publish("m", LARGE)
    with pytest.raises(KeyboardInterrupt):
        make_client(progress=stop, connections=connections).download_model("m")
    assert cached_files(tmp_path / "cache") == []
    (partial,) = partial_files(tmp_path)
    held = partial.stat().st_blocks * 512
    assert held >= MIB
    seen: List[int] = []
    client = make_client(progress=lambda done, _: seen.append(done))
    assert client.download_model("m").read_bytes() == LARGE
    assert seen[0] >= MIB
    assert partial_files(tmp_path) == []


@pytest.mark.parametrize("connections", [1, 4])
def test_too_little_memory_for_buffers_ends_it(
    gateway: FakeGateway,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    connections: int,
) -> None:
    def full(_: object) -> memoryview:
        raise MemoryError

    gateway.publish("m", LARGE)
    client = make_client(connections=connections)
    with monkeypatch.context() as patched:
        patched.setattr(Transfer, "keep_right_leaves", lambda _: None)
        patched.setattr("vision_o3.sdk.download._leaf_buffer", full)
        with pytest.raises(MemoryError):
            client.download_model("m")
    assert client.download_model("m").read_bytes() == LARGE


@pytest.mark.parametrize("possible", [0, 1, 3])
def test_fewer_threads_do_where_there_is_no_memory_for_more(
    gateway: FakeGateway,
    client: VisionO3Client,
    monkeypatch: pytest.MonkeyPatch,
    possible: int,
) -> None:
    started: List[threading.Thread] = []
    start = threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if len(started) == possible:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    gateway.publish("m", LARGE)
    monkeypatch.setattr(threading.Thread, "start", start_some)
    assert client.download_model("m").read_bytes() == LARGE


def test_an_unforeseen_error_while_verifying_is_passed_on(
    gateway: FakeGateway, client: VisionO3Client, tmp_path: Path
) -> None:
    class Failing(LeafTable):
        def verify(self, *_: object) -> None:
            raise MemoryError

    document = gateway.publish("m", b"abc")
    cid = CID.parse(document["cid"])
    table = Failing(cid, 3, MIB, cid.digest)
    source = GatewaySource(client._session, "/models/m/download")
    with (tmp_path / "f").open("wb") as file, pytest.raises(MemoryError):
        fetch(client._session, [source], table, file.fileno())


def test_lies_are_counted_in_order(gateway: FakeGateway) -> None:
    gateway.publish("m", b"ab")
    gateway.lie("/download", nothing, flip(0))
    bodies = [
        gateway.answer("GET", "/models/m/download", {}, b"").body for _ in range(3)
    ]
    assert bodies == [b"ab", b"`b", b"ab"]
    assert gateway.body_bytes == 6
