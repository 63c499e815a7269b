from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Body, FastAPI, Request
from starlette.types import Message, Receive, Scope, Send

from tests.test_gateway.running import problem
from vision_o3.errors import IncompleteUploadError
from vision_o3.gateway import problems
from vision_o3.gateway.bodies import MIN_RATE, SMALL_BODY, Incoming, SmallBodies
from vision_o3.gateway.middleware import RequestLog


def make_app(timeout_s: float = 60) -> FastAPI:
    app = FastAPI()

    @app.post("/json")
    async def take_json(content: Any = Body()) -> int:  # noqa: B008, FAST002 - FastAPI's way
        return len(json.dumps(content))

    @app.post("/stream")
    async def take_stream(request: Request) -> int:
        incoming = Incoming(request, timeout_s)
        size, ended = 0, False
        while not ended:
            piece, ended = await incoming.next_piece()
            size += len(piece)
        return size

    app.add_middleware(SmallBodies, timeout_s=timeout_s)
    problems.install(app)
    app.add_middleware(RequestLog)
    return app


def post(app: FastAPI, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway"
        ) as client:
            return await client.post(path, **options)

    return anyio.run(send)


def text_of(size: int) -> bytes:
    """Return a JSON text of so many bytes."""
    return b'"' + b"a" * (size - 2) + b'"'


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


JSON = {"Content-Type": "application/json"}


def test_small_body_is_taken() -> None:
    answer = post(make_app(), "/json", content=text_of(SMALL_BODY), headers=JSON)
    assert (answer.status_code, answer.json()) == (200, SMALL_BODY)


def test_larger_body_is_refused_whether_it_says_so_or_not() -> None:
    content = text_of(SMALL_BODY + 1)
    for body in (content, in_pieces(content)):
        answer = post(make_app(), "/json", content=body, headers=JSON)
        assert problem(answer) == (413, "too_large")
        assert answer.json()["limit"] == SMALL_BODY


def test_body_that_is_said_to_be_larger_is_refused_unread() -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"[", "more_body": True}

    sent = run(make_app(), receive, (b"content-length", b"%d" % (SMALL_BODY + 1)))
    assert sent[0]["status"] == 413
    assert read == 0


def run(
    app: FastAPI, receive: Receive, *headers: tuple[bytes, bytes]
) -> Sequence[Message]:
    """Return what is sent for a ``POST /json``."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/json",
        "raw_path": b"/json",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"content-type", b"application/json"), *headers],
    }
    send_typed: Send = send
    anyio.run(app, scope, receive, send_typed)
    return sent


def test_small_body_that_does_not_come_is_not_waited_for() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    sent = run(make_app(timeout_s=0.05), receive)
    assert sent[0]["status"] == 408
    assert b"request_timeout" in sent[1]["body"]


def test_trickle_of_a_small_body_is_not_waited_for_either() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b" ", "more_body": True}

    assert run(make_app(timeout_s=0.05), receive)[0]["status"] == 408


def test_route_that_streams_has_no_small_body() -> None:
    content = bytes(3 * SMALL_BODY)
    for body in (content, in_pieces(content)):
        answer = post(make_app(), "/stream", content=body)
        assert (answer.status_code, answer.json()) == (200, len(content))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * SMALL_BODY,
        b'{"a":' * (SMALL_BODY // 5),
        b"[" * 30_000 + b"]" * 30_000,
        b"\xff\xfe",
        b"{",
        b"{]",
        b'{"a": 1, }',
        b"NaN_",
        b"1" * 5000,
        b'"\\ud800',
    ],
)
def test_json_that_cannot_be_read_is_the_callers_fault(content: bytes) -> None:
    answer = post(make_app(), "/json", content=content, headers=JSON)
    assert problem(answer) == (422, "invalid_input")


class Pace:
    """A body of one-byte or larger pieces, and the clock that it is timed by."""

    def __init__(self, pieces: Sequence[tuple[float, int]]) -> None:
        self._pieces = list(pieces)
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def receive(self) -> Message:
        took_s, size = self._pieces.pop(0)
        self.now += took_s
        more = bool(self._pieces)
        return {"type": "http.request", "body": bytes(size), "more_body": more}


def take(pace: Pace, timeout_s: float, work_s: float = 0.0) -> int:
    async def take_all() -> int:
        scope: Scope = {"type": "http", "headers": []}
        incoming = Incoming(Request(scope, pace.receive), timeout_s, pace.clock)
        size, ended = 0, False
        while not ended:
            piece, ended = await incoming.next_piece()
            size += len(piece)
            pace.now += work_s
        return size

    return anyio.run(take_all)


def test_byte_now_and_then_does_not_hold_a_transfer() -> None:
    with pytest.raises(IncompleteUploadError, match=r"Fewer than 512 bytes a second"):
        take(Pace([(1.0, 1)] * 1000), timeout_s=60)


def test_slow_but_steady_transfer_is_taken() -> None:
    assert take(Pace([(1.0, MIN_RATE)] * 500), timeout_s=60) == 500 * MIN_RATE


def test_pause_shorter_than_the_timeout_is_forgiven() -> None:
    pieces = [(0.1, 1 << 20), (50.0, 1), (0.1, 1 << 20)] * 20
    assert take(Pace(pieces), timeout_s=60) == 20 * ((2 << 20) + 1)


def test_time_that_the_gateway_takes_is_not_the_callers() -> None:
    pieces = [(0.001, 1)] * 100
    assert take(Pace(pieces), timeout_s=60, work_s=30) == 100


def test_fast_start_does_not_pay_for_a_slow_rest() -> None:
    with pytest.raises(IncompleteUploadError):
        take(Pace([(1.0, 100 << 20)] + [(30.0, 10)] * 100), timeout_s=60)
