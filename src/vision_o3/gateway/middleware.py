"""What surrounds every request: its id, its log line, and an orderly early end."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from vision_o3.gateway.metrics import Answered
from vision_o3.gateway.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vision_o3.gateway.metrics import Metrics
    from vision_o3.gateway.tracing import Tracing

REQUEST_ID_HEADER = b"x-request-id"
NO_SNIFF = (b"x-content-type-options", b"nosniff")
TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")
LINGER_S = 5.0
"""Seconds that a refused upload is still received for, so that the caller, who may
only read when it has sent all, gets to see why."""
LINGER_SIZE = 64 << 20
"""Bytes after which it is not, at most."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger(__name__)


def request_id_of(scope: Scope) -> str:
    """Return the id that this request's log lines and answers carry."""
    request_id: str = scope.get("state", {}).get("request_id", "")
    return request_id


def _cid_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the CID that an answer's head names."""
    for name, value in headers:
        if name.lower() == b"x-vision-o3-cid":
            return value.decode("ascii", "replace")
    return None


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


class _Exchange:
    """One request and its answer, watched as they pass."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, begun: Callable[[], None]
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._begun = begun
        self._started = time.perf_counter()
        self._head_s: float | None = None
        self._status = self._received = self._sent = 0
        self.complete = False
        """Whether all of the answer was sent."""
        self.cid: str | None = None
        """What the answer's head names, if it names one."""

    async def receive(self) -> Message:
        """Pass on what the caller sends."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Pass on what is answered, with the request's id in the head."""
        if message["type"] == "http.response.start":
            self._begun()
            self._head_s = time.perf_counter() - self._started
            self._status = message["status"]
            given = message.get("headers", ())
            self.cid = _cid_in(given)
            request_id = request_id_of(self._scope).encode()
            headers = [*given, (REQUEST_ID_HEADER, request_id)]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if self._scope["method"] != "HEAD":  # whose body the server drops
                self._sent += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    def summary(self) -> Answered:
        """Return what there is to tell of it."""
        state = self._scope["state"]
        total_s = time.perf_counter() - self._started
        return Answered(
            getattr(self._scope.get("route"), "path", None),
            self._scope["method"],
            self._status,
            self.complete,
            self._received,
            self._sent,
            total_s,
            total_s if self._head_s is None else self._head_s,
            state.get("code"),
            state.get("refusal"),
        )


class RequestLog:
    """Gives each request an id; logs, counts and traces it when it has ended.

    A caller's own ``X-Request-ID`` is kept if it is harmless; the id is answered. The
    line names the route's template, never the path or query, which callers choose.
    Numbers and spans go to the ``metrics`` and ``tracing`` of the app's state.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, REQUEST_ID_HEADER)
        if given is None or not _SANE_ID.fullmatch(given):
            given = secrets.token_hex(12).encode()
        state = scope.setdefault("state", {})
        state["request_id"] = given.decode()
        named = structlog.contextvars.bound_contextvars(request_id=state["request_id"])
        with named, self._turns.before_answer(scope) as begun:
            exchange = _Exchange(scope, receive, send, begun)
            with _traced(scope, exchange), _counted(scope, exchange):
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    _write_line(state, exchange.summary())


@contextmanager
def _counted(scope: Scope, exchange: _Exchange) -> Iterator[None]:
    """Count a request, if anybody counts."""
    metrics: Metrics | None = _of_app(scope, "metrics")
    if metrics is None:
        yield
        return
    with metrics.in_work.track_inprogress():
        try:
            yield
        finally:
            metrics.answered(exchange.summary())


@contextmanager
def _traced(scope: Scope, exchange: _Exchange) -> Iterator[None]:
    """Make a request a span, if there are traces; its log lines name the trace."""
    tracing: Tracing | None = _of_app(scope, "tracing")
    if tracing is None:
        yield
        return
    parent = _header(scope, b"traceparent")
    with (
        tracing.request(parent, request_id_of(scope)) as span,
        structlog.contextvars.bound_contextvars(trace_id=span.trace_id),
    ):
        try:
            yield
        finally:
            span.end_request(exchange.summary(), exchange.cid)


def _write_line(state: dict[str, Any], answered: Answered) -> None:
    _log.info(
        "request.answered" if answered.complete else "request.broken_off",
        principal=state.get("principal"),
        method=answered.method,
        route=answered.route,
        status=answered.status,
        code=answered.code,
        bytes_received=answered.received,
        bytes_sent=answered.sent,
        duration_s=round(answered.total_s, 6),
    )


def _of_app(scope: Scope, name: str) -> Any:  # noqa: ANN401 - whatever the app keeps
    return getattr(getattr(scope.get("app"), "state", None), name, None)


class SafeHeaders:
    """Tells browsers to guess no types and, over TLS, to come by TLS only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = [NO_SNIFF, TLS_ONLY] if scope["scheme"] == "https" else [NO_SNIFF]

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_safely)


class EarlyEnd:
    """Lets an answer that comes before the whole body was read arrive.

    A server that closes while bytes come in resets the connection, and the answer may
    be lost with it. So the answer says ``Connection: close``, is sent whole, and what
    still comes is thrown away for a while before the connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        waits_to_continue = (_header(scope, b"expect") or b"").lower() == (
            b"100-continue"
        )
        asked = read = False

        async def receive_noted() -> Message:
            nonlocal asked, read
            asked = True
            message = await receive()
            read = not message.get("more_body", False)
            return message

        async def send_lingering(message: Message) -> None:
            if read:
                await send(message)
            elif message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                await send({**message, "headers": headers})
            elif message.get("more_body", False) or (waits_to_continue and not asked):
                await send(message)
            else:
                await send({**message, "more_body": True})
                await _throw_away(receive)
                await send({"type": "http.response.body", "body": b""})

        await self._app(scope, receive_noted, send_lingering)


def _has_body(scope: Scope) -> bool:
    length = _header(scope, b"content-length")
    return length not in {None, b"0"} or (
        _header(scope, b"transfer-encoding") is not None
    )


async def _throw_away(receive: Receive) -> None:
    """Receive and forget until the body ends, or there was enough of it."""
    left = LINGER_SIZE
    try:
        async with asyncio.timeout(LINGER_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
