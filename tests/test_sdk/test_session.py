from __future__ import annotations

import threading
from typing import Any, List

import pytest

from tests.fakes.fake_gateway import (
    FakeGateway,
    InMemoryTransport,
    body,
    chunked,
    header,
    redirect,
    refuse,
)
from tests.test_sdk.conftest import FakeClock
from vision_o3 import errors
from vision_o3.sdk.session import Session


def session_of(gateway: FakeGateway, clock: FakeClock, **options: Any) -> Session:
    return Session(
        gateway.url,
        transport=InMemoryTransport({gateway.url: gateway}),
        clock=clock,
        **options,
    )


@pytest.mark.parametrize("url", ["", "x", "ftp://a", "http://a?q=1", "http://a/#b"])
def test_refuses_what_is_no_gateways_url(url: str) -> None:
    with pytest.raises(errors.InputError):
        Session(url)


def test_refuses_token_and_credentials_together() -> None:
    with pytest.raises(errors.InputError, match="not both"):
        Session("http://a", api_token="t", credentials=("a", "b"))


def test_gateway_may_live_below_a_path(clock: FakeClock) -> None:
    gateway = FakeGateway()
    transport = InMemoryTransport({"http://a": gateway})
    session = Session("http://a/registry/", transport=transport, clock=clock)
    with pytest.raises(errors.NotFoundError):
        session.get_object("/models/m")
    assert gateway.seen[0].path == "/registry/models/m"


# Tokens


def test_sends_the_token_given(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.tokens = ["own"]
    session_of(gateway, clock, api_token="own").get_object("/models")
    assert gateway.seen[0].headers["authorization"] == "Bearer own"
    assert gateway.seen[0].headers["user-agent"].startswith("vision-o3/")


def test_sends_no_token_without_one(gateway: FakeGateway, clock: FakeClock) -> None:
    session_of(gateway, clock).get_object("/models")
    assert "authorization" not in gateway.seen[0].headers


def test_a_given_token_is_not_renewed(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.tokens = ["other"]
    with pytest.raises(errors.UnauthenticatedError):
        session_of(gateway, clock, api_token="own").get_object("/models")
    assert len(gateway.seen) == 1


def test_gets_one_token_and_uses_it(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam&1": "s=ecret"}
    session = session_of(gateway, clock, credentials=("cam&1", "s=ecret"))
    for _ in range(3):
        session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 1


def test_renews_a_token_before_it_ends(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    gateway.expires_in = 100
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    session.get_object("/models")
    clock.sleep(69)
    session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 1
    clock.sleep(2)
    session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 2


def test_renews_a_refused_token_once(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    session.get_object("/models")
    gateway.tokens[0] = "revoked"
    session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 2
    gateway.lie("/models", refuse(401, "unauthenticated"), times=2)
    with pytest.raises(errors.UnauthenticatedError):
        session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 3


def test_threads_share_one_renewal(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    session.get_object("/models")
    gateway.tokens[0] = "revoked"
    start = threading.Barrier(4)
    failed: List[Exception] = []

    def work() -> None:
        start.wait()
        try:
            session.get_object("/models")
        except errors.VisionO3Error as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert gateway.count("/auth/token", "POST") == 2


def test_wrong_credentials(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    session = session_of(gateway, clock, credentials=("cam", "wrong"))
    with pytest.raises(errors.UnauthenticatedError):
        session.sign_in()
    assert len(gateway.seen) == 1


def test_sign_in_says_what_it_got(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    gateway.lie("/auth/token", refuse(503, "storage_unavailable"))
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    assert session.sign_in() == ("token-2", 3600, "model:read")
    with pytest.raises(errors.UnauthenticatedError, match="no client id"):
        session_of(gateway, clock).sign_in()


@pytest.mark.parametrize("answer", [b"{}", b'{"access_token": 5}', b"[]", b"<html>"])
def test_what_is_no_token(
    gateway: FakeGateway, clock: FakeClock, answer: bytes
) -> None:
    gateway.users = {"cam": "secret"}
    gateway.lie("/auth/token", body(answer))
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    with pytest.raises(errors.TransportError, match="not understood"):
        session.get_object("/models")


def test_token_with_a_senseless_life(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.users = {"cam": "secret"}
    session = session_of(gateway, clock, credentials=("cam", "secret"))
    gateway.expires_in = "soon"
    with pytest.raises(errors.TransportError, match="not understood"):
        session.get_object("/models")
    gateway.expires_in = -5
    session.get_object("/models")
    session.get_object("/models")
    assert gateway.count("/auth/token", "POST") == 2


# Redirects


def test_follows_a_redirect_without_the_token(clock: FakeClock) -> None:
    ours, store = FakeGateway(), FakeGateway()
    ours.lie("/download", redirect("https://store.test/models/m/download?sig=a%2Fb c"))
    store.publish("m", b"bytes")
    transport = InMemoryTransport(
        {"https://gw.test": ours, "https://store.test": store}
    )
    session = Session(
        "https://gw.test", api_token="secret", transport=transport, clock=clock
    )
    headers = {"Range": "bytes=1-3"}
    with session.exchange("GET", "/models/m/download", headers) as response:
        assert response.status == 206
    assert ours.seen[0].headers["authorization"] == "Bearer secret"
    (seen,) = store.seen
    assert "authorization" not in seen.headers
    assert seen.headers["range"] == "bytes=1-3"
    assert seen.query == {"sig": ["a/b c"]}


def test_keeps_the_token_on_its_own_origin(
    gateway: FakeGateway, clock: FakeClock
) -> None:
    gateway.lie("/old", redirect("/models", 301))
    session_of(gateway, clock, api_token="secret").get_object("/old")
    assert gateway.seen[1].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://a/b",
        "http://store.test/x",
        "",
        "javascript:x",
        "//",
        "http://user:pass@gw.test/",
        "https://[",
        "HTTP://gw.test/",
    ],
)
def test_refuses_to_be_sent_elsewhere(clock: FakeClock, location: str) -> None:
    gateway, store = FakeGateway(), FakeGateway()
    gateway.lie("/models", redirect(location), times=9)
    transport = InMemoryTransport(
        {"https://gw.test": gateway, "http://store.test": store}
    )
    session = Session("https://gw.test", transport=transport, clock=clock)
    with pytest.raises(errors.TransportError, match="redirects") as caught:
        session.get_object("/models")
    assert not caught.value.retryable
    assert not store.seen
    assert not clock.slept


def test_refuses_to_go_in_circles(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.lie("/models", redirect("/models"), times=99)
    with pytest.raises(errors.TransportError, match="in circles"):
        session_of(gateway, clock).get_object("/models")
    assert len(gateway.seen) == 6


def test_a_body_is_not_sent_elsewhere(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.lie("/models", redirect("/elsewhere"))
    with pytest.raises(errors.TransportError, match="a POST to '/elsewhere'"):
        session_of(gateway, clock).send_for_object("POST", "/models", {}, b"x")


def test_another_hosts_refusal_is_not_the_gateways(clock: FakeClock) -> None:
    gateway, store = FakeGateway(), FakeGateway()
    gateway.lie("/models", redirect("http://store.test/models"))
    store.lie("/models", refuse(403, "permission_denied"))
    transport = InMemoryTransport(
        {"http://g.test": gateway, "http://store.test": store}
    )
    session = Session("http://g.test", transport=transport, clock=clock)
    session.get_object("/models")  # asked again for a new place to go
    assert len(clock.slept) == 1


# Answers


@pytest.mark.parametrize(
    "lie",
    [
        refuse(429, None, Retry_After="2"),
        refuse(502),
        refuse(503, "storage_unavailable"),
        refuse(503, "database_unavailable"),
        refuse(504),
        refuse(409, "upload_in_progress", Retry_After="1"),
        header("Content-Length", "9999"),  # it ends too soon
    ],
)
def test_tries_again_what_may_pass(
    gateway: FakeGateway, clock: FakeClock, lie: Any
) -> None:
    gateway.lie("/models", lie, lie)
    assert session_of(gateway, clock).get_object("/models")["total"] == 0
    assert len(clock.slept) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 416, 422, 500, 507])
def test_does_not_try_again_what_cannot_pass(
    gateway: FakeGateway, clock: FakeClock, status: int
) -> None:
    gateway.lie("/models", refuse(status))
    with pytest.raises(errors.VisionO3Error):
        session_of(gateway, clock).get_object("/models")
    assert len(gateway.seen) == 1


def test_nobody_there(clock: FakeClock) -> None:
    session = Session("http://g.test", transport=InMemoryTransport({}), clock=clock)
    with pytest.raises(errors.TransportError, match="cannot be reached"):
        session.get_object("/models")
    assert len(clock.slept) == 4


def test_compressed_answer_is_refused(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.lie("/models", header("Content-Encoding", "gzip"))
    with pytest.raises(errors.TransportError, match="Content-Encoding 'gzip'"):
        session_of(gateway, clock).get_object("/models")
    gateway.lie("/models", header("Content-Encoding", " Identity"))
    session_of(gateway, clock).get_object("/models")


@pytest.mark.parametrize("answer", [b"", b"[]", b"nope", b"\xff\xff", b"5"])
def test_what_is_no_object(
    gateway: FakeGateway, clock: FakeClock, answer: bytes
) -> None:
    gateway.lie("/models", body(answer))
    with pytest.raises(errors.TransportError, match="not understood"):
        session_of(gateway, clock).get_object("/models")


def test_documents_are_bounded(gateway: FakeGateway, clock: FakeClock) -> None:
    gateway.lie("/models", body(b" " * (17 << 20)))
    gateway.lie("/models", chunked)
    with pytest.raises(errors.TransportError, match="longer than"):
        session_of(gateway, clock).get_object("/models")
