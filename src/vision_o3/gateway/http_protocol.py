"""HTTP/1.1 of the gateway's connections: what uvicorn's own does, within limits.

A head must come in time and be small; what is not plainly one request after another is
refused, and nothing after it is read; an answer that nobody reads is given up. What is
refused here never reaches the application, and is answered like all errors are.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import sys
import termios
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httptools
import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from vision_o3.errors import (
    GatewayBusyError,
    HeadTooLargeError,
    MalformedRequestError,
    RequestTimeoutError,
    VisionO3Error,
)
from vision_o3.gateway.bodies import MIN_RATE
from vision_o3.gateway.problems import render

if TYPE_CHECKING:
    import asyncio

    from vision_o3.settings import Settings

MOST_HEADERS = 200
"""Header fields of one request."""
MOST_PIPELINED = 4
"""Requests of one connection that may wait for the answers to those before them."""
LINGER_S = 2.0
"""Seconds that a refused caller has to read why, before the connection is closed."""
TURN_AWAY_S = 1.0
"""Seconds that one connection too many is kept, to be told so."""

_TARGET = re.compile(rb"\*|(https?://[^/?#]+)?/[^#]*", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9._~:%\[\]!$&'()*+,;=-]*")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may take."""

    connections: int
    """At the same time, of this process; further ones are told to come later."""
    head_size: int
    """Bytes of a request's line and headers."""
    head_timeout_s: float
    """From the start of the connection, or a later request's first byte."""
    stall_timeout_s: float
    """In which a part of what is to be sent must have been taken."""

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Return those that the settings state."""
        return cls(
            connections=settings.max_connections,
            head_size=settings.max_head_bytes,
            head_timeout_s=settings.head_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )


def http_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Return what uvicorn takes as ``http``; it can be sent to worker processes."""
    return cast("type[asyncio.Protocol]", partial(GatewayProtocol, limits=limits))


def _malformed(error: httptools.HttpParserError) -> VisionO3Error:
    if isinstance(error, httptools.HttpParserCallbackError):
        error = httptools.HttpParserError("The address cannot be read")
    return MalformedRequestError(
        "This is not a request of HTTP/1.1 (RFC 9112). "
        f"The gateway's parser says: {error}."
    )


def _find_doubt(
    version: str, url: bytes, headers: list[tuple[bytes, bytes]], *, upgrades: bool
) -> str | None:
    """Return why others might read this head otherwise, if so.

    The parser has refused all else: two lengths, a length beside chunks, folded lines,
    bare line ends, control characters, spaces before a colon.
    """
    if version not in {"1.1", "1.0"}:
        return f"HTTP/{version} is not spoken here: use HTTP/1.1."
    if not _TARGET.fullmatch(url):
        return "The request's address is not a path, with a query or without."
    hosts, has_body = [], False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            has_body = has_body or value.strip() != b"0"
        elif name == b"transfer-encoding":
            has_body = True
            if version != "1.1" or value.strip().lower() != b"chunked":
                return "The one Transfer-Encoding is 'chunked', with HTTP/1.1."
    if has_body and upgrades:
        return "Send a request with a body without 'Connection: Upgrade'."
    return _find_doubt_of_host(version, hosts)


def _find_doubt_of_host(version: str, hosts: list[bytes]) -> str | None:
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        return f"A request has one header Host; this one has {len(hosts)}."
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "The header Host is not the name of a host."
    return None


class GatewayProtocol(HttpToolsProtocol):
    """One connection. Made by uvicorn, with ``http_protocol``."""

    def __init__(self, *, limits: ConnectionLimits, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(**options)
        self._limits = limits
        self._period_s = min(limits.head_timeout_s, limits.stall_timeout_s) / 4
        self._timer: asyncio.TimerHandle | None = None
        self._turned_away = False
        self._deaf = False
        """Nothing more is understood as a request; what comes is thrown away."""
        self._refusal: VisionO3Error | None = None
        """What a callback of the parser found wrong."""
        self._at_work: RequestResponseCycle | None = None
        """Whose turn it is to be answered; ``cycle`` may be of a later request."""
        # Of the request that is being received:
        self._in_head = False
        self._in_body = False
        self._head_since: float | None = None
        self._head_size = 0
        self._got_on = False
        self._fruitless = 0
        """Bytes that came since a head, a piece of a body, or its end was complete."""
        # Of what is being sent:
        self._unsent = 0
        self._unsent_since = 0.0
        self._drained = False

    # asyncio's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to wait for a head; turn the caller away if there are too many."""
        super().connection_made(transport)
        most = self._limits.connections
        if len(self.connections) <= most:
            self._head_since = self.loop.time()
            self._timer = self.loop.call_later(self._period_s, self._look)
            return
        self._turned_away = True
        if len(self.connections) > most + max(64, most // 16):
            transport.abort()
        else:
            # Answered once it has said something: an answer to a caller who is still
            # sending is lost with the connection.
            self._timer = self.loop.call_later(TURN_AWAY_S, self._turn_away)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the application know, and end."""
        self._set_timer(None)
        super().connection_lost(exc)
        if self._at_work is not None and not self._at_work.response_complete:
            # uvicorn tells the latest request only, which may wait behind this one.
            self._at_work.disconnected = True
            self._at_work.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take the next bytes; refuse what cannot be a request."""
        if self._deaf:
            return
        if self._turned_away:
            self._turn_away()
            return
        self._unset_keepalive_if_required()
        if self._head_since is None and not (self._in_body or self._answering):
            self._head_since = self.loop.time()
        self._got_on = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._answer_no_more()  # what follows may be any protocol
            return
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or _malformed(error))
            return
        if self._got_on:
            self._fruitless = 0
            if self._in_body and self.cycle.body:
                self._hand_on_body()
            return
        self._fruitless += len(data)
        if self._fruitless > self._limits.head_size:
            self._refuse(self._head_too_large())

    def resume_writing(self) -> None:
        """Take note that much of what was to be sent has been taken."""
        self._drained = True
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Go on to the next request, unless this one is answered and still comes."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            # Nobody takes the rest of its body, however long that is dribbled.
            self._deaf = True
            self._unset_keepalive_if_required()
            self._end()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        self._at_work = cycle
        super()._start_asgi_task(cycle, app)

    # the parser's side; what it raises comes out of feed_data

    def on_message_begin(self) -> None:
        """Begin a request, unless too many wait already."""
        if len(self.pipeline) >= MOST_PIPELINED:
            raise self._refused(
                MalformedRequestError("Too many requests were sent before an answer.")
            )
        if self._head_since is None:
            self._head_since = self.loop.time()
        self._in_head = True
        self._head_size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; those that follow a body are thrown away."""
        if self._in_body:
            return
        self._count(len(name) + len(value) + len(b": \r\n"))
        if len(self.headers) >= MOST_HEADERS:
            raise self._refused(
                HeadTooLargeError(
                    f"The request has more than {MOST_HEADERS} header fields.",
                    limit=MOST_HEADERS,
                )
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, if its head leaves no doubt."""
        problem = _find_doubt(
            self.parser.get_http_version(),
            self.url,
            self.headers,
            upgrades=self.parser.should_upgrade(),
        )
        if problem is not None:
            raise self._refused(MalformedRequestError(problem))
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._head_since = None
        self._got_on = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, of which a caller may send very many."""
        self._got_on = True
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body

    def on_message_complete(self) -> None:
        """End the request."""
        self._in_body = False
        self._got_on = True
        super().on_message_complete()

    # ours

    @property
    def _answering(self) -> bool:
        """Whether a request that has come is without its whole answer."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def _caller(self) -> str | None:
        return self.client[0] if self.client else None

    def _hand_on_body(self) -> None:
        """Let the application have what came; read on when it has taken much of it."""
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._limits.head_size:
            raise self._refused(self._head_too_large())

    def _refused(self, error: VisionO3Error) -> VisionO3Error:
        self._refusal = error
        return error

    def _head_too_large(self) -> VisionO3Error:
        limit = self._limits.head_size
        return HeadTooLargeError(
            f"The request's address and headers have more than {limit} bytes "
            "(VISION_O3_MAX_HEAD_BYTES).",
            limit=limit,
        )

    def _answer_no_more(self) -> None:
        """Answer what has come, then close."""
        self._deaf = True
        if not self._answering:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _refuse(self, error: VisionO3Error) -> None:
        """Say what is wrong with what comes, if nothing else is being said; end."""
        self._deaf = True
        self._head_since = None
        if self.transport.is_closing():
            return
        if self._in_body and self.pipeline:
            # Its turn to be answered would come, and its body never.
            self.transport.abort()
        elif self._in_body and not self.cycle.response_started:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._say(error)
        elif self._in_body or self._answering:
            self._answer_no_more()
        else:
            self._say(error)

    def _say(self, error: VisionO3Error) -> None:
        """Send an answer of our own, and close when it can have been read."""
        request_id = secrets.token_hex(12)
        status, headers, content = render(error, request_id)
        _log.info(
            "request.refused",
            request_id=request_id,
            code=error.code,
            reason=error.message,
            status=status,
            client=self._caller,
        )
        lines = [STATUS_LINE[status]]
        lines += [
            b"%b: %b\r\n" % header for header in self.server_state.default_headers
        ]
        headers |= {
            "Content-Length": str(len(content)),
            "X-Content-Type-Options": "nosniff",
            "X-Request-ID": request_id,
            "Connection": "close",
        }
        lines += [f"{name}: {text}\r\n".encode() for name, text in headers.items()]
        self.transport.write(b"".join([*lines, b"\r\n", content]))
        self._end()

    def _end(self) -> None:
        """Close when what was said can have been read."""
        if self.transport.is_closing():
            return
        # Closed while bytes still come, the connection would be reset, and the answer
        # lost. Over TLS there is no half of a connection to close.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_timer(LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def _turn_away(self) -> None:
        self._deaf = True
        self._set_timer(None)
        self._say(
            GatewayBusyError(
                "The gateway has as many connections as it takes "
                "(VISION_O3_MAX_CONNECTIONS). Try again in a moment.",
                retry_after_s=5,
            )
        )

    def _set_timer(self, delay_s: float | None, work: Any = None) -> None:  # noqa: ANN401 - any callback
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s is not None:
            self._timer = self.loop.call_later(delay_s, work)

    def _look(self) -> None:
        """See now and then whether the caller keeps the connection for nothing."""
        self._timer = None
        now, delay_s = self.loop.time(), self._period_s
        if self._stalled(now):
            _log.info("connection.stalled", client=self._caller)
            self.transport.abort()
            return
        if self._head_since is not None:
            left_s = self._head_since + self._limits.head_timeout_s - now
            if left_s <= 0:
                self._give_up_head()
            else:
                delay_s = min(delay_s, left_s)
        if self._timer is None:
            self._timer = self.loop.call_later(delay_s, self._look)

    def _give_up_head(self) -> None:
        if self._in_head:
            limit_s = self._limits.head_timeout_s
            self._refuse(
                RequestTimeoutError(
                    f"The request's headers did not come within {limit_s:g} s "
                    "(VISION_O3_HEAD_TIMEOUT_S)."
                )
            )
        else:  # nothing was asked: nothing is answered
            self._head_since = None
            self.transport.close()

    def _stalled(self, now: float) -> bool:
        """Say whether what is to be sent has been taken too slowly for too long."""
        unsent = self._find_unsent()
        enough = MIN_RATE * self._limits.stall_timeout_s
        took = self._unsent - unsent
        if not (self._unsent and unsent) or self._drained or took >= enough:
            self._drained = False
            self._unsent, self._unsent_since = unsent, now
        return bool(unsent) and now - self._unsent_since >= self._limits.stall_timeout_s

    def _find_unsent(self) -> int:
        """Return how many bytes wait for the caller; 0 if the system holds them all.

        What it holds counts if there is more: it may be megabytes, of which much must
        be taken before any of ours is, however steadily the caller reads.
        """
        unsent = self.transport.get_write_buffer_size()
        if not unsent or sys.platform != "linux":
            return unsent
        try:
            descriptor = self.transport.get_extra_info("socket").fileno()
            queued = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ
        except (OSError, ValueError):  # closed a moment ago
            return unsent
        return unsent + int.from_bytes(queued, sys.byteorder)
