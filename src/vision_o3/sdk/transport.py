"""One exchange over HTTP: the protocol, and the default on ``http.client``.

No retries, redirects or tokens here; ``session.py`` has them.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Tuple,
    Union,
)
from urllib.parse import unquote, urlsplit

from vision_o3.errors import InputError, TransportError
from vision_o3.sdk.bounds import Bounds

if TYPE_CHECKING:
    import http.client
    import socket
    import ssl

    from _typeshed import ReadableBuffer, WriteableBuffer

Body = Union[bytes, Iterable["ReadableBuffer"]]
Origin = Tuple[str, str, int]

SLOWEST = 512
"""Bytes a second; an answer that comes slower for the read time-out has stalled."""
_MAX_HEAD_SIZE = 256 << 10
"""Bytes of an answer's status and headers, informational ones before it included."""
_CONTINUE, _OK = 100, 200
_FRAMING = 8
"""Bytes on the wire for each byte of a body, at most: chunks may be small."""
_IDLE_FOR_S = 60.0
"""Longest that a connection waits for its next request; routers forget it later."""
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Response(Protocol):
    """An answer whose body is still to be read; close it."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer from its start; return the count, zero at the end.

        Returns fewer bytes than fit only at the end or when the link is slow.

        Raises:
            TransportError: The connection broke, or nothing came for too long.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; may be called again."""
        ...


class Transport(Protocol):
    """What carries requests; safe for several threads at once."""

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Optional[Body] = None,
        bounds: Optional[Bounds] = None,
    ) -> Response:
        """Send a request; return the answer, whatever its status.

        Args:
            method: Of HTTP.
            url: Absolute, ``http`` or ``https``.
            headers: Sent as given. With a body that is not ``bytes``, they must
                have its ``Content-Length``.
            body: Bytes, or an iterable that can be started again.
            bounds: Of the call; they end the exchange, reading the body included.

        Raises:
            TransportError: No answer came.
            CancelledError: The call was cancelled.
        """
        ...

    def close(self) -> None:
        """Close idle connections; it can still be used after that."""
        ...


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of an ``http`` or ``https`` URL.

    Raises:
        InputError: It is not one, or holds a user name.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{shown(url)} is not a URL: {error}.") from error
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc:
        raise InputError(
            f"{shown(url)} is not a URL such as https://models.example.com or "
            "http://127.0.0.1:8000."
        )
    return parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]


def shown(url: str) -> str:
    """Return a URL as an error may show it: without user, password and query."""
    before, slashes, rest = url[:200].partition("//")
    if "@" in rest:
        rest = "…@" + rest.rpartition("@")[2]
    rest, query, _ = rest.partition("?")
    return repr(before + slashes + rest + query + ("…" if query else ""))


class HTTPTransport:
    """The default: connections of ``http.client``, kept alive and shared by threads.

    Proxies come from the usual environment variables (``http_proxy``, ``https_proxy``,
    ``no_proxy``), and so do authorities (``SSL_CERT_FILE``, ``SSL_CERT_DIR``).

    Args:
        connect_timeout_s: For connecting and the TLS handshake.
        read_timeout_s: Longest wait for the next bytes, and longest time in which an
            answer may come at less than ``SLOWEST``.
        answer_timeout_s: Longest wait for the answer to an upload, which the gateway
            looks into first: sent again, it would be looked into again.
        max_idle: Connections kept open for each origin.
        ssl_context: Default: Python's, which checks certificates and host names.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
        answer_timeout_s: float = 900.0,
        max_idle: int = 8,
        ssl_context: Optional[ssl.SSLContext] = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._answer_timeout_s = max(answer_timeout_s, read_timeout_s)
        self._max_idle = max_idle
        self._ssl_context = ssl_context
        self._idle: Dict[Origin, List[_Idle]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Optional[Body] = None,
        bounds: Optional[Bounds] = None,
    ) -> Response:
        """Send a request; return the answer, whatever its status.

        A request that may be sent twice first tries an idle connection. If the other
        side had closed it, that is no failure: a fresh one decides.

        Raises:
            TransportError: No answer came.
            CancelledError: The call was cancelled.
        """
        asked = _Asked(method, url, headers, body, bounds or Bounds())
        asked.bounds.check()
        origin = origin_of(url)
        if body is None or method in _IDEMPOTENT:
            idle = self._take_idle(origin)
            if idle is not None:
                try:
                    return self._exchange(idle, origin, asked)
                except ConnectionError:
                    self._forget(origin)
                except TransportError:  # the others may have died as silently
                    self._forget(origin)
                    raise
        fresh = self._connect(origin, asked.bounds)
        try:
            return self._exchange(fresh, origin, asked)
        except ConnectionError as error:
            raise _broken(origin, error) from error

    def close(self) -> None:
        """Close idle connections; it can still be used after that."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for links in idle.values():
            for each in links:
                each.link.connection.close()

    def _take_idle(self, origin: Origin) -> Optional[_Link]:
        if self._process != os.getpid():  # forked: they are the parent's
            self._process, self._lock = os.getpid(), threading.Lock()
            self._idle = {}
        oldest = time.monotonic() - _IDLE_FOR_S
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                if not idle:
                    return None
                last = idle.pop()
            if last.since >= oldest:
                return last.link
            last.link.connection.close()

    def _forget(self, origin: Origin) -> None:
        """Close the idle connections to an origin."""
        with self._lock:
            idle = self._idle.pop(origin, [])
        for each in idle:
            each.link.connection.close()

    def give_back(self, origin: Origin, link: _Link) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < self._max_idle:
                idle.append(_Idle(link, time.monotonic()))
                return
        link.connection.close()

    def _connect(self, origin: Origin, bounds: Bounds) -> _Link:
        # Imported here: a cache hit needs no HTTP, and http.client costs 20 ms.
        import http.client  # noqa: PLC0415 - as above
        import ssl  # noqa: PLC0415 - as above

        scheme, host, port = origin
        timeout_s = max(0.001, min(self._connect_timeout_s, bounds.left_s()))
        proxy = _proxy_for(origin)
        at = (host, port) if proxy is None else (proxy.host, proxy.port)
        connection: http.client.HTTPConnection
        if scheme == "https":
            if self._ssl_context is None:
                self._ssl_context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                *at, timeout=timeout_s, context=self._ssl_context
            )
        else:
            connection = http.client.HTTPConnection(*at, timeout=timeout_s)
        if proxy is not None and scheme == "https":
            connection.set_tunnel(host, port, proxy.headers)

        def answer_of_proxy(
            sock: socket.socket, method: Optional[str] = None
        ) -> http.client.HTTPResponse:
            return _Receiver(sock, bounds, timeout_s).response(sock, method)

        connection.response_class = answer_of_proxy  # type: ignore[assignment]
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise TransportError(
                f"The certificate of {host}:{port} is refused: "
                f"{error.verify_message or error}.",
                retryable=False,
            ) from error
        # UnicodeError: no such host name. HTTPException: the proxy speaks no HTTP.
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            connection.close()
            bounds.check()
            through = "" if proxy is None else f" through the proxy {at[0]}:{at[1]}"
            raise TransportError(
                f"{host}:{port} cannot be reached{through}: {_reason(error)}."
            ) from error
        return _Link(connection, proxy if scheme == "http" else None)

    def _exchange(self, link: _Link, origin: Origin, asked: _Asked) -> Response:
        """Send on this connection; raise ConnectionError if it was lost."""
        import http.client  # noqa: PLC0415 - see _connect

        connection, body = link.connection, asked.body
        uploaded = body is not None and not isinstance(body, bytes)
        wait_s = self._answer_timeout_s if uploaded else self._read_timeout_s
        try:
            lost: Optional[OSError] = None
            try:
                connection.sock.settimeout(self._read_timeout_s)
                _send(link, asked)
            except OSError as error:
                if body is None:
                    raise
                lost = error  # a refusal may have come before all was sent
                wait_s = self._read_timeout_s
            receiver = _Receiver(connection.sock, asked.bounds, wait_s)
            connection.response_class = receiver.response  # type: ignore[assignment]
            try:
                raw = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise lost or error from error
            receiver.head_is_read(self._read_timeout_s)
        except ConnectionError:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _broken(origin, error) from error
        except BaseException:
            connection.close()
            raise
        return _HTTPResponse(raw, link, self, origin, receiver)


class _Idle(NamedTuple):
    """A connection that waits for its next request since a time."""

    link: _Link
    since: float


class _Asked(NamedTuple):
    """A request."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Optional[Body]
    bounds: Bounds


class _Proxy(NamedTuple):
    """An HTTP proxy, and the headers that it wants."""

    host: str
    port: int
    headers: Dict[str, str]


class _Link(NamedTuple):
    """A connection; with the proxy that is asked for whole URLs over it, if any."""

    connection: http.client.HTTPConnection
    proxy: Optional[_Proxy]


def _send(link: _Link, asked: _Asked) -> None:
    parts = urlsplit(asked.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = dict(asked.headers)
    if link.proxy is not None:  # RFC 9112 section 3.2.2
        target = f"{parts.scheme}://{parts.netloc}{target}"
        headers = {"Host": parts.netloc, **headers, **link.proxy.headers}
    body = asked.body
    if body is not None and not isinstance(body, bytes):
        body = _checked(body, asked.bounds)
    link.connection.request(asked.method, target, body=body, headers=headers)


def _checked(
    body: Iterable[ReadableBuffer], bounds: Bounds
) -> Iterator[ReadableBuffer]:
    """Yield the pieces of a body as long as the call may go on."""
    for piece in body:
        bounds.check()
        yield piece


def _proxy_for(origin: Origin) -> Optional[_Proxy]:
    """Return the proxy that the environment names for an origin."""
    import urllib.request  # noqa: PLC0415 - see HTTPTransport._connect

    scheme, host, port = origin
    url = urllib.request.getproxies().get(scheme)
    if not url or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        name, number = parts.hostname, parts.port or 80
    except ValueError:
        parts, name, number = urlsplit(""), None, 0
    if parts.scheme != "http" or not name:  # the URL may hold a password: not shown
        raise InputError(
            f"The proxy for {scheme} in the environment is not an http URL such as "
            "http://proxy.example.com:3128."
        )
    headers = {}
    if parts.username:
        import base64  # noqa: PLC0415 - seldom needed

        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        secret = base64.b64encode(user.encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {secret}"
    return _Proxy(name, number, headers)


class _Receiver(io.RawIOBase):
    """The bytes of one answer as they come; ends what stalls, drips or is cancelled.

    Args:
        sock: The connection's.
        bounds: Of the call.
        timeout_s: Longest wait for the next bytes of the head.
    """

    def __init__(self, sock: socket.socket, bounds: Bounds, timeout_s: float) -> None:
        self._sock = sock
        # http.client closes a socket that will not be used again; this keeps it open.
        self._held = sock.makefile("rb", buffering=0)
        self._bounds = bounds
        self._timeout_s = timeout_s
        self._step_s = 0.0
        self._in_head = True
        self._left = _MAX_HEAD_SIZE
        self._waited_s = 0.0
        self._received = 0
        """In so many seconds of waiting; both begin anew now and then."""

    def response(
        self, _: object, method: Optional[str] = None
    ) -> http.client.HTTPResponse:
        """Return the answer that is read from here; ``http.client`` calls it."""
        answer: http.client.HTTPResponse = _response_class()(self, method=method)
        return answer

    def makefile(self, _: str) -> io.BufferedReader:
        """Return a reader of the answer; ``http.client`` calls it."""
        return io.BufferedReader(self)

    def head_is_read(self, timeout_s: float) -> None:
        """Wait so long for the next bytes of the body, not the head, from now on."""
        self._in_head = False
        self._timeout_s = timeout_s
        self._waited_s, self._received = 0.0, 0

    def allow(self, count: int) -> None:
        """Read so many bytes at most before this is called again."""
        self._left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self._left <= 0:
            raise OSError("its headers, or what frames its body, do not end")
        count = self._receive(buffer)
        if not count and self._in_head:  # http.client would take it for the whole head
            raise ConnectionResetError("the connection ended within the headers")
        self._left -= count
        self._received += count
        if self._waited_s >= self._timeout_s:
            if count and self._received < SLOWEST * self._timeout_s:
                raise OSError(f"less than {SLOWEST} bytes a second came")
            self._waited_s, self._received = 0.0, 0
        return count

    def close(self) -> None:
        self._held.close()
        super().close()

    def _receive(self, buffer: WriteableBuffer) -> int:
        """Wait for the next bytes, in steps short enough to see the call's end."""
        self._bounds.check()
        started = time.monotonic()
        left_s = self._timeout_s
        try:
            while left_s > 0:
                step_s = self._bounds.within(left_s)
                if step_s != self._step_s:  # it costs a system call
                    self._sock.settimeout(step_s)
                    self._step_s = step_s
                try:
                    return self._sock.recv_into(buffer)
                except OSError as error:
                    if not _is_timeout(error):
                        raise
                self._bounds.check()
                left_s = self._timeout_s - (time.monotonic() - started)
            raise TimeoutError("nothing came for too long")
        finally:
            self._waited_s += time.monotonic() - started


@functools.lru_cache(maxsize=None)
def _response_class() -> Any:
    """Return what reads an answer, and skips informational ones before it."""
    import http.client  # noqa: PLC0415 - see HTTPTransport._connect

    class Answer(http.client.HTTPResponse):
        def _read_status(self) -> Tuple[str, int, str]:
            while True:
                # http.client itself skips 100 only, and takes 103 for the answer.
                version, status, reason = super()._read_status()  # type: ignore[misc]
                if status == _CONTINUE or not _CONTINUE < status < _OK:
                    return version, status, reason
                http.client.parse_headers(self.fp)

    return Answer


class _HTTPResponse:
    def __init__(
        self,
        raw: http.client.HTTPResponse,
        link: _Link,
        transport: HTTPTransport,
        origin: Origin,
        receiver: _Receiver,
    ) -> None:
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.getheaders()}
        self._raw = raw
        self._link: Optional[_Link] = link
        self._transport = transport
        self._origin = origin
        self._receiver = receiver

    def readinto(self, buffer: memoryview, /) -> int:
        import http.client  # noqa: PLC0415 - see HTTPTransport._connect

        self._receiver.allow(_FRAMING * len(buffer) + _MAX_HEAD_SIZE)
        try:
            return self._raw.readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(self._origin, error) from error

    def close(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        reusable = self._raw.isclosed() and not self._raw.will_close
        self._raw.close()
        if reusable:
            self._transport.give_back(self._origin, link)
        else:
            link.connection.close()


def _broken(origin: Origin, error: Exception) -> TransportError:
    _, host, port = origin
    return TransportError(f"The exchange with {host}:{port} broke: {_reason(error)}.")


def _reason(error: Exception) -> str:
    if _is_timeout(error):
        return "nothing came for too long"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rstrip(".")


def _is_timeout(error: Exception) -> bool:
    # Before Python 3.10, that of sockets is another class than TimeoutError.
    return isinstance(error, TimeoutError) or "timed out" in str(error)
