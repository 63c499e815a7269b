"""Mirrors, the gateway, and where it points: who is asked, and who gets the token."""

from __future__ import annotations

from typing import Any, List

import pytest

from tests.fakes.fake_gateway import (
    Answer,
    FakeGateway,
    InMemoryTransport,
    Lie,
    drop,
    drop_unanswered,
    flip,
    header,
    nothing,
    refuse,
    stall,
    whole,
)
from tests.test_sdk.conftest import MIB, FakeClock, MakeClient, content_of
from vision_o3 import errors
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.download import LONGEST_RUN
from vision_o3.sdk.sources import Mirror

CONTENT = content_of(40 * MIB + 5)


class FakeMirror(FakeGateway):
    """Serves a store's layout, and content by CID."""

    def __init__(self, url: str, gateway: FakeGateway) -> None:
        super().__init__()
        self.url = url
        self._gateway = gateway

    def _route(self, seen: Any) -> Answer:
        words = seen.path.strip("/").split("/")
        if words[0] == "store" and words[-1].endswith(".dag.car"):
            path = f"/models/{words[-2]}/versions/{words[-1][1:-8]}/dag"
        elif words[0] == "store":
            number = words[-1][1:].partition(".")[0]
            path = f"/models/{words[-2]}/versions/{number}/download"
        else:
            path = f"/models/cid/{words[-1]}/download"
        seen.path = path
        return self._gateway._route(seen)


@pytest.fixture
def mirrors(gateway: FakeGateway) -> List[FakeMirror]:
    gateway.publish("m", CONTENT)
    return [FakeMirror(f"http://mirror{n}.test", gateway) for n in (1, 2)]


@pytest.fixture
def make_mirrored(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_client: MakeClient
) -> MakeClient:
    def make(**options: Any) -> VisionO3Client:
        servers = {each.url: each for each in [gateway, *mirrors]}
        urls = [f"{mirrors[0].url}/store", f"{mirrors[1].url}/by-cid/{{cid}}"]
        values = {"transport": InMemoryTransport(servers), "mirrors": urls, **options}
        return make_client(**values)

    return make


def served(server: FakeGateway) -> int:
    """Return the leaves that a server was asked for."""
    count = 0
    for seen in server.seen:
        if "range" in seen.headers:
            first, _, last = seen.headers["range"][len("bytes=") :].partition("-")
            count += -(-(int(last) + 1) // MIB) - int(first) // MIB
    return count


def test_the_first_mirror_serves(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_mirrored: MakeClient
) -> None:
    client = make_mirrored(api_token="secret")
    assert client.download_model("m").read_bytes() == CONTENT
    assert served(mirrors[0]) >= 30  # others may be asked before it has answered
    assert served(mirrors[0]) + served(mirrors[1]) + served(gateway) == 41
    for mirror in mirrors:
        assert not any("authorization" in seen.headers for seen in mirror.seen)
    assert all("authorization" in seen.headers for seen in gateway.seen)


@pytest.mark.parametrize(
    "lie",
    [
        flip(0),
        flip(MIB - 1),
        refuse(503),
        refuse(404),
        refuse(403),
        drop(3),
        drop_unanswered,
        header("Content-Encoding", "gzip"),
        header("Content-Range", "bytes 0-0/1"),
        whole(CONTENT[:-1]),
        whole(bytes(len(CONTENT))),
    ],
)
@pytest.mark.parametrize("connections", [1, 4])
def test_a_bad_mirror_costs_one_leaf(
    gateway: FakeGateway,
    mirrors: List[FakeMirror],
    make_mirrored: MakeClient,
    lie: Lie,
    connections: int,
) -> None:
    mirrors[0].lie("", lie, times=99)
    client = make_mirrored(connections=connections)
    assert client.download_model("m").read_bytes() == CONTENT
    asked = sum(seen.path.endswith("download") for seen in mirrors[0].seen)
    assert served(mirrors[0]) == asked <= 5
    assert served(mirrors[1]) + served(gateway) >= 41
    assert served(mirrors[1]) > 20


def test_a_liar_is_left_alone_for_a_minute(
    mirrors: List[FakeMirror], make_mirrored: MakeClient, clock: FakeClock
) -> None:
    mirrors[0].lie("", flip(7))
    client = make_mirrored(connections=1)
    assert client.download_model("m").read_bytes() == CONTENT
    assert served(mirrors[0]) == 1
    assert clock.slept == []


def test_a_source_that_turns_slow_is_given_up(
    gateway: FakeGateway,
    mirrors: List[FakeMirror],
    make_mirrored: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("vision_o3.sdk.download._SLOW_LEAF_S", 0.3)
    mirrors[0].lie("", nothing, nothing, *[stall(MIB + 9)] * 99)
    with gateway.serving(), mirrors[0].serving():
        options = {"transport": None, "clock": None, "timeout": 60.0}
        urls = [f"{mirrors[0].url}/store"]
        with make_mirrored(mirrors=urls, **options) as client:
            assert client.download_model("m").read_bytes() == CONTENT
    assert "is slow, and others are not" in caplog.text
    assert served(gateway) > 0


@pytest.mark.parametrize("connections", [1, 4])
def test_a_liar_is_asked_at_once_when_nobody_else_is_left(
    gateway: FakeGateway,
    mirrors: List[FakeMirror],
    make_mirrored: MakeClient,
    clock: FakeClock,
    connections: int,
) -> None:
    mirrors[0].lie("", flip(7), flip(7))
    mirrors[1].lie("", refuse(404), times=99)
    gateway.lie("/download", refuse(403), times=99)
    client = make_mirrored(connections=connections)
    assert client.download_model("m").read_bytes() == CONTENT
    assert sum(clock.slept) < 10


def test_the_gateway_serves_where_all_mirrors_fail(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_mirrored: MakeClient
) -> None:
    for mirror in mirrors:
        mirror.lie("", drop_unanswered, times=99)
    assert make_mirrored().download_model("m").read_bytes() == CONTENT
    assert served(gateway) == 41


def test_mirrors_serve_where_the_gateway_fails(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_mirrored: MakeClient
) -> None:
    client = make_mirrored()
    info = client.get_model_info("m")
    for ending in ("/dag", "/download"):
        gateway.lie(ending, drop_unanswered, times=99)
    assert client.download(info).read_bytes() == CONTENT
    assert any(seen.path.endswith("/dag") for seen in mirrors[0].seen)


def test_the_gateways_word_counts_when_nobody_serves(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_mirrored: MakeClient
) -> None:
    for mirror in mirrors:
        mirror.lie("", refuse(404), times=99)
    gateway.lie("/download", refuse(403, "permission_denied"), times=99)
    with pytest.raises(errors.PermissionDeniedError):
        make_mirrored().download_model("m")


def test_a_source_that_was_given_up_is_asked_again_later(
    gateway: FakeGateway, mirrors: List[FakeMirror], make_mirrored: MakeClient
) -> None:
    # The mirror fails for good, it seems; the gateway serves one leaf, then is down
    # for longer than the mirror.
    client = make_mirrored(mirrors=[f"{mirrors[0].url}/store"], connections=1)
    mirrors[0].lie("", *[drop_unanswered] * 5)
    gateway.lie("/download", nothing, *[drop_unanswered] * 4)
    assert client.download_model("m").read_bytes() == CONTENT


def test_one_connection_is_used_where_ranges_are_unknown(
    gateway: FakeGateway, make_client: MakeClient
) -> None:
    gateway.publish("m", CONTENT)
    gateway.lie("/download", whole(CONTENT), times=99)
    assert make_client().download_model("m").read_bytes() == CONTENT
    assert gateway.count("/download") <= 2


@pytest.mark.parametrize("connections", [1, 4])
def test_pauses_are_as_long_as_the_server_asks(
    gateway: FakeGateway, make_client: MakeClient, clock: FakeClock, connections: int
) -> None:
    gateway.publish("m", CONTENT)
    lies = [refuse(429, None, Retry_After="2")] * 4
    gateway.lie("/download", nothing, *lies)
    client = make_client(connections=connections)
    assert client.download_model("m").read_bytes() == CONTENT
    assert sum(clock.slept) >= 2 * len(lies) / connections


def test_runs_grow_with_trust(gateway: FakeGateway, make_client: MakeClient) -> None:
    content = content_of(130 * MIB)
    gateway.publish("m", content)
    make_client(connections=1).download_model("m")
    lengths = []
    for seen in gateway.seen:
        if "range" in seen.headers:
            first, _, last = seen.headers["range"][len("bytes=") :].partition("-")
            lengths.append((int(last) + 1 - int(first)) // MIB)
    assert lengths == [1, 2, 4, 8, 16, 32, 32, LONGEST_RUN, 3]


@pytest.mark.parametrize(
    ("url", "artifact"),
    [
        ("http://h/store", "http://h/store/models/a/v3.onnx"),
        ("https://h:8/", "https://h:8/models/a/v3.onnx"),
        ("http://h/{cid}.bin?x=1", "http://h/CID.bin?x=1"),
    ],
)
def test_where_a_mirror_has_an_artifact(
    client: VisionO3Client, gateway: FakeGateway, url: str, artifact: str
) -> None:
    for number in range(3):
        gateway.publish("a", bytes([number]))
    info = client.get_model_info("a")
    source: Any = Mirror(url).source(client._session, info)
    assert source._artifact_url == artifact.replace("CID", info.cid)


@pytest.mark.parametrize(
    "url",
    [
        "mirror",
        "ftp://h/",
        "http://h/?a=1",
        "http://h/#a",
        "http://u:p@h/",
        "http://{cid}.h/",
        "file:///tmp",
    ],
)
def test_what_is_not_a_mirror(make_client: MakeClient, url: str) -> None:
    with pytest.raises(errors.InputError):
        make_client(mirrors=[url])
