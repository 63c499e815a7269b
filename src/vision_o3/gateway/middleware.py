"""What surrounds every request: its id, its log line, and an orderly early end."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING

import structlog

from vision_o3.gateway.turns import Turns

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = b"x-request-id"
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


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


class RequestLog:
    """Gives each request an id, and writes one line when it has ended.

    A caller's own ``X-Request-ID`` is kept if it is harmless; the id is answered. The
    line names the route's template, never the path or query, which callers choose.
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
        status, received, sent, complete = 0, 0, 0, False

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            nonlocal status, sent, complete
            if message["type"] == "http.response.start":
                begun()
                status = message["status"]
                headers = list(message.get("headers", ()))
                headers.append((REQUEST_ID_HEADER, given))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                if scope["method"] != "HEAD":  # whose body the server drops
                    sent += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            await send(message)

        started = time.perf_counter()
        with (
            structlog.contextvars.bound_contextvars(request_id=state["request_id"]),
            self._turns.before_answer(scope) as begun,
        ):
            try:
                await self._app(scope, receive_counted, send_counted)
            finally:
                route = scope.get("route")
                _log.info(
                    "request.answered" if complete else "request.broken_off",
                    principal=state.get("principal"),
                    method=scope["method"],
                    route=getattr(route, "path", None),
                    status=status,
                    bytes_received=received,
                    bytes_sent=sent,
                    duration_s=round(time.perf_counter() - started, 6),
                )


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
