"""One exchange over HTTP: the protocol, and the default on ``http.client``.

No retries, redirects or tokens here; ``session.py`` has them.
"""

from __future__ import annotations

import contextlib
import threading
from typing import (
    TYPE_CHECKING,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Protocol,
    Tuple,
    Union,
)
from urllib.parse import urlsplit

from vision_o3.errors import InputError, TransportError

if TYPE_CHECKING:
    import http.client
    import ssl

    from _typeshed import ReadableBuffer

Body = Union[bytes, Iterable["ReadableBuffer"]]
Origin = Tuple[str, str, int]

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
    ) -> Response:
        """Send a request; return the answer, whatever its status.

        Args:
            method: Of HTTP.
            url: Absolute, ``http`` or ``https``.
            headers: Sent as given. With a body that is not ``bytes``, they must
                have its ``Content-Length``.
            body: Bytes, or an iterable that can be started again.

        Raises:
            TransportError: No answer came.
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
        raise InputError(f"{url!r} is not a URL: {error}.") from error
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc:
        raise InputError(
            f"{url!r} is not a URL such as https://models.example.com or "
            "http://127.0.0.1:8000."
        )
    return parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]


class HTTPTransport:
    """The default: connections of ``http.client``, kept alive and shared by threads.

    Args:
        connect_timeout_s: For connecting and the TLS handshake.
        read_timeout_s: Longest wait for the next bytes.
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
        self._idle: Dict[Origin, List[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Optional[Body] = None,
    ) -> Response:
        """Send a request; return the answer, whatever its status.

        A request without a body first tries an idle connection. If the other side had
        closed it, that is no failure: a fresh one decides.

        Raises:
            TransportError: No answer came.
        """
        origin = origin_of(url)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if body is None:
            idle = self._take_idle(origin)
            if idle is not None:
                with contextlib.suppress(ConnectionError):
                    return self._exchange(idle, origin, (method, target), headers, body)
        fresh = self._connect(origin)
        try:
            return self._exchange(fresh, origin, (method, target), headers, body)
        except ConnectionError as error:
            raise _broken(origin, error) from error

    def close(self) -> None:
        """Close idle connections; it can still be used after that."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _take_idle(self, origin: Origin) -> Optional[http.client.HTTPConnection]:
        with self._lock:
            connections = self._idle.get(origin)
            return connections.pop() if connections else None

    def give_back(self, origin: Origin, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            connections = self._idle.setdefault(origin, [])
            if len(connections) < self._max_idle:
                connections.append(connection)
                return
        connection.close()

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        # Imported here: a cache hit needs no HTTP, and http.client costs 20 ms.
        import http.client  # noqa: PLC0415 - as above
        import ssl  # noqa: PLC0415 - as above

        scheme, host, port = origin
        connection: http.client.HTTPConnection
        if scheme == "https":
            if self._ssl_context is None:
                self._ssl_context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._connect_timeout_s, context=self._ssl_context
            )
        else:
            connection = http.client.HTTPConnection(
                host, port, timeout=self._connect_timeout_s
            )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"The certificate of {host}:{port} is refused: "
                f"{error.verify_message or error}.",
                retryable=False,
            ) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: no such host name
            raise TransportError(
                f"{host}:{port} cannot be reached: {_reason(error)}."
            ) from error
        connection.sock.settimeout(self._read_timeout_s)
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        origin: Origin,
        line: Tuple[str, str],
        headers: Mapping[str, str],
        body: Optional[Body],
    ) -> Response:
        """Send on this connection; raise ConnectionError if it was lost."""
        import http.client  # noqa: PLC0415 - see _connect

        try:
            lost: Optional[OSError] = None
            try:
                connection.request(*line, body=body, headers=dict(headers))
            except OSError as error:
                if body is None:
                    raise
                lost = error  # a refusal may have come before all was sent
            uploaded = body is not None and not isinstance(body, bytes)
            try:
                if uploaded and lost is None:
                    connection.sock.settimeout(self._answer_timeout_s)
                raw = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise lost or error from error
            if uploaded and connection.sock is not None:  # it is when it stays open
                connection.sock.settimeout(self._read_timeout_s)
        except ConnectionError:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _broken(origin, error) from error
        except BaseException:
            connection.close()
            raise
        return _HTTPResponse(raw, connection, self, origin)


class _HTTPResponse:
    def __init__(
        self,
        raw: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        transport: HTTPTransport,
        origin: Origin,
    ) -> None:
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.getheaders()}
        self._raw = raw
        self._connection: Optional[http.client.HTTPConnection] = connection
        self._transport = transport
        self._origin = origin

    def readinto(self, buffer: memoryview, /) -> int:
        import http.client  # noqa: PLC0415 - see HTTPTransport._connect

        try:
            return self._raw.readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(self._origin, error) from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        reusable = self._raw.isclosed() and not self._raw.will_close
        self._raw.close()
        if reusable:
            self._transport.give_back(self._origin, connection)
        else:
            connection.close()


def _broken(origin: Origin, error: Exception) -> TransportError:
    _, host, port = origin
    return TransportError(f"The exchange with {host}:{port} broke: {_reason(error)}.")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "nothing came for too long"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rstrip(".")
