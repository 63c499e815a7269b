"""A TCP proxy in front of an S3 server that does what networks and stores do.

It speaks HTTP/1.1 on loopback, one thread for each connection, and passes each request
through unchanged, its ``Host`` too, which signatures cover: the client must be given
``FaultProxy.endpoint``. What is to go wrong is told by ``fail``; what happened is in
``exchanges``.
"""

from __future__ import annotations

import fnmatch
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.http_wire import Head, Wire, read_body, read_head

_UPSTREAM_TIMEOUT_S = 60


class Fault(Enum):
    """What is done to a request. The comment says what the store gets to see of it."""

    PASS = "pass"
    # The store sees nothing; the proxy answers.
    INTERNAL_ERROR = "500"
    SLOW_DOWN = "503"
    CLOCK_SKEW = "clock skew"
    EXPIRED = "expired"
    ROTATED = "credentials rotated"
    # The store sees nothing; nobody answers.
    RESET_BEFORE = "reset before the request"
    STALL = "stall"
    # The store sees half of it.
    RESET_IN_REQUEST = "reset in the request's body"
    # The store does it; the answer suffers.
    LOSE_ANSWER = "reset before the answer"
    STALL_ANSWER = "stall before the answer"
    RESET_IN_ANSWER = "reset in the answer's body"
    STALL_IN_ANSWER = "stall in the answer's body"
    RESET_AFTER_ANSWER = "reset after the answer's body"
    TRUNCATE = "answer cut short"
    CORRUPT = "one bit of the answer's body changed"
    WRONG_ETAG = "wrong ETag"
    # The store does it twice; the second answer is passed on.
    DUPLICATE = "delivered twice"
    # The client sees a reset; the store does it when ``deliver_late`` is called.
    LATE = "delivered late"


_CANNED = {
    Fault.INTERNAL_ERROR: (500, "InternalError", "We had an error. Please try again."),
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.CLOCK_SKEW: (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the server's is too large.",
    ),
    Fault.EXPIRED: (403, "AccessDenied", "Request has expired"),
    Fault.ROTATED: (403, "InvalidAccessKeyId", "There is no such access key."),
}

STALLS = frozenset({Fault.STALL, Fault.STALL_ANSWER, Fault.STALL_IN_ANSWER})
"""After these the client waits for bytes that never come."""

_BEFORE_THE_STORE = frozenset({*_CANNED, Fault.RESET_BEFORE, Fault.STALL})


@dataclass(slots=True)
class Exchange:
    """One request and what became of it."""

    operation: str
    """S3's name for it: ``PutObject``, ``UploadPart``, ``ListObjects`` …"""
    key: str
    """Without the bucket; empty for requests to the bucket."""
    query: dict[str, str]
    fault: Fault
    status: int | None = None
    """What the store, or the proxy for it, answered."""
    sent: int = 0
    """Bytes of the request's body that were passed to the store."""
    received: int = 0
    """Bytes of the answer's body that the store sent."""


@dataclass(slots=True)
class _Rule:
    fault: Fault
    operation: str
    key: str
    skip: int
    left: float

    def takes(self, exchange: Exchange) -> bool:
        """Say whether this request is to suffer; counts it if it matches."""
        if not fnmatch.fnmatchcase(exchange.operation, self.operation):
            return False
        if not fnmatch.fnmatchcase(exchange.key, self.key) or self.left <= 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left -= 1
        return True


class FaultProxy:
    """Stands before the S3 server at ``endpoint`` until closed.

    Attributes:
        endpoint: Where clients reach the server through the proxy.
        exchanges: All requests so far, in the order they came.
    """

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (target.hostname or "", target.port or 80)
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._late: list[tuple[Head, bytes]] = []
        self._open: set[Wire] = set()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self.exchanges: list[Exchange] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(
            target=self._accept, name="fault-proxy", daemon=True
        )
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------- the script

    def fail(
        self,
        fault: Fault,
        operation: str = "*",
        key: str = "*",
        *,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        """Have requests suffer: the ``nth`` that matches from now on, ``times`` of it.

        Patterns are of ``fnmatch``; ``times=None`` means until ``clear``. Of several
        rules that match, the first that was made and is not used up counts.
        """
        with self._lock:
            left = float("inf") if times is None else times
            self._rules.append(_Rule(fault, operation, key, nth - 1, left))

    def clear(self) -> None:
        """Let all further requests pass. What stalls goes on stalling."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Begin anew: no rules, nothing kept back, no exchanges."""
        with self._lock:
            self._rules.clear()
            self._late.clear()
            self.exchanges.clear()

    def deliver_late(self) -> int:
        """Deliver to the store what was kept back by ``Fault.LATE``; say how many."""
        with self._lock:
            late, self._late = self._late, []
        for head, body in late:
            exchange = Exchange("", "", {}, Fault.LATE)
            with self._connect() as upstream:
                _, answer = self._ask(upstream, head, [body], exchange)
                for _ in answer:
                    continue
        return len(late)

    # --------------------------------------------------------------- what happened

    def count(self, operation: str = "*", key: str = "*") -> int:
        """Return how many requests came that match."""
        return sum(1 for _ in self._matching(operation, key))

    def suffered(self) -> list[Exchange]:
        """Return the requests that did not just pass."""
        with self._lock:
            return [e for e in self.exchanges if e.fault is not Fault.PASS]

    def bytes_read(self) -> Counter[str]:
        """Return how many bytes of each object the store has sent."""
        read: Counter[str] = Counter()
        for exchange in self._matching("GetObject", "*"):
            read[exchange.key] += exchange.received
        return read

    def _matching(self, operation: str, key: str) -> Iterator[Exchange]:
        with self._lock:
            exchanges = list(self.exchanges)
        for exchange in exchanges:
            if fnmatch.fnmatchcase(exchange.operation, operation) and (
                fnmatch.fnmatchcase(exchange.key, key)
            ):
                yield exchange

    # -------------------------------------------------------------------- the wire

    def close(self) -> None:
        """End all connections and threads. May be called any number of times."""
        self._closing.set()
        with suppress(OSError):
            # Wakes the thread that accepts; closing alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        with self._lock:
            wires, threads = list(self._open), list(self._threads)
        for wire in wires:
            wire.end()
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(connection)
            thread = threading.Thread(
                target=self._serve,
                args=(wire,),
                name="fault-proxy-connection",
                daemon=True,
            )
            with self._lock:
                self._open.add(wire)
                self._threads.add(thread)
            thread.start()

    def _serve(self, client: Wire) -> None:
        try:
            # A peer that goes away is everyday life here.
            with suppress(OSError, EOFError):
                while not self._closing.is_set() and self._serve_request(client):
                    pass
        finally:
            client.close()
            with self._lock:
                self._open.discard(client)
                self._threads.discard(threading.current_thread())

    def _serve_request(self, client: Wire) -> bool:
        """Serve one request; say whether the connection lives on."""
        head = read_head(client)
        if head is None:
            return False
        exchange = self._begin(head)
        fault = exchange.fault
        if fault is Fault.RESET_BEFORE:
            client.reset()
            return False
        if head.take_expectation():
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(client, head, to_end=False)
        if fault in _BEFORE_THE_STORE or fault is Fault.LATE:
            return self._keep_from_store(client, head, body, exchange)
        if fault is Fault.RESET_IN_REQUEST:
            self._send_half(client, head, body, exchange)
            return False
        if fault is Fault.DUPLICATE:
            pieces = list(body)
            with self._connect() as upstream:
                _, answer = self._ask(upstream, head, pieces, exchange)
                for _ in answer:
                    continue
            body = iter(pieces)
        with self._connect() as upstream:
            answer_head, answer = self._ask(upstream, head, body, exchange)
            return self._answer(client, head, answer_head, answer, exchange)

    def _begin(self, head: Head) -> Exchange:
        method, target, _ = head.first.split(" ", 2)
        url = urlsplit(target)
        _, _, key = url.path.lstrip("/").partition("/")
        query = {
            name: values[0]
            for name, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        key = unquote(key)
        operation = _operation(method, key, query)
        exchange = Exchange(operation, key, query, Fault.PASS)
        with self._lock:
            for rule in self._rules:
                if rule.takes(exchange):
                    exchange.fault = rule.fault
                    break
            self.exchanges.append(exchange)
        return exchange

    def _connect(self) -> _Upstream:
        return _Upstream(
            self, socket.create_connection(self._target, timeout=_UPSTREAM_TIMEOUT_S)
        )

    def _keep_from_store(
        self, client: Wire, head: Head, body: Iterator[bytes], exchange: Exchange
    ) -> bool:
        content = b"".join(body)
        if exchange.fault is Fault.LATE:
            with self._lock:
                self._late.append((head, content))
            client.reset()
            return False
        if exchange.fault is Fault.STALL:
            self._stall(client)
            return False
        exchange.status, code, message = _CANNED[exchange.fault]
        document = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message>"
            "<RequestId>0</RequestId></Error>"
        ).encode()
        if head.first.startswith("HEAD "):
            document = b""
        client.send(
            f"HTTP/1.1 {exchange.status} {code}\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(document)}\r\n\r\n".encode()
            + document
        )
        return not head.ends_connection

    def _send_half(
        self, client: Wire, head: Head, body: Iterator[bytes], exchange: Exchange
    ) -> None:
        content = b"".join(body)
        half = content[: len(content) // 2]
        with self._connect() as upstream:
            # Of a request without a body, half of the head.
            sent = head.encode()
            upstream.send(
                sent + head.frame(half) if content else sent[: len(sent) // 2]
            )
            exchange.sent = len(half)
            client.reset()
            upstream.reset()

    def _ask(
        self,
        upstream: Wire,
        head: Head,
        body: Iterable[bytes],
        exchange: Exchange,
    ) -> tuple[Head, Iterator[bytes]]:
        """Send a request to the store; return its answer's head and body."""
        upstream.send(head.encode())
        try:
            for piece in body:
                upstream.send(head.frame(piece))
                exchange.sent += len(piece)
            upstream.send(head.last_frame)
        except (BrokenPipeError, ConnectionResetError):
            # The store did not want the body: what it says stands in its answer.
            for _ in body:
                continue
        while True:
            answer = read_head(upstream)
            if answer is None:
                raise EOFError("The store closed the connection without an answer.")
            exchange.status = int(answer.first.split(" ", 2)[1])
            if exchange.status >= 200:
                break
        if head.first.startswith("HEAD ") or exchange.status in (204, 304):
            return answer, iter(())
        return answer, self._counted(read_body(upstream, answer, to_end=True), exchange)

    def _counted(self, body: Iterator[bytes], exchange: Exchange) -> Iterator[bytes]:
        for piece in body:
            exchange.received += len(piece)
            yield piece

    def _answer(
        self,
        client: Wire,
        head: Head,
        answer: Head,
        body: Iterator[bytes],
        exchange: Exchange,
    ) -> bool:
        """Pass the store's answer on, damaged as the script says."""
        fault = exchange.fault
        if fault in _AFTER_HALF:
            self._answer_half(client, answer, b"".join(body), fault)
            return False
        if fault in (Fault.LOSE_ANSWER, Fault.STALL_ANSWER):
            for _ in body:
                continue
            if fault is Fault.STALL_ANSWER:
                self._stall(client)
            client.reset()
            return False
        if fault is Fault.WRONG_ETAG:
            answer.replace("etag", f'"{"0" * 32}"')
        if fault is Fault.CORRUPT:
            body = iter([_with_a_bit_changed(b"".join(body))])
        has_body = not head.first.startswith("HEAD ")
        client.send(answer.encode())
        for piece in body:
            client.send(answer.frame(piece))
        client.send(answer.last_frame if has_body else b"")
        if fault is Fault.RESET_AFTER_ANSWER:
            client.reset()
            return False
        return not (head.ends_connection or answer.ends_connection)

    def _answer_half(
        self, client: Wire, answer: Head, content: bytes, fault: Fault
    ) -> None:
        sent = answer.encode()
        if content:
            sent += answer.frame(content[: len(content) // 2])
        else:
            sent = sent[: len(sent) // 2]
        client.send(sent)
        if fault is Fault.STALL_IN_ANSWER:
            self._stall(client)
        elif fault is Fault.RESET_IN_ANSWER:
            client.reset()
        else:
            client.close()

    def _stall(self, client: Wire) -> None:
        """Do nothing until the client has had enough, or the proxy is closed."""
        while not self._closing.is_set() and not client.has_left(within_s=0.05):
            pass
        client.reset()


def _with_a_bit_changed(content: bytes) -> bytes:
    middle = len(content) // 2
    changed = bytes(each ^ 1 for each in content[middle : middle + 1])
    return content[:middle] + changed + content[middle + 1 :]


_AFTER_HALF = frozenset({Fault.RESET_IN_ANSWER, Fault.STALL_IN_ANSWER, Fault.TRUNCATE})


class _Upstream(Wire):
    """A connection to the store for one request; ended when the proxy closes."""

    def __init__(self, proxy: FaultProxy, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy = proxy

    def __enter__(self) -> Self:
        with self._proxy._lock:
            self._proxy._open.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        with self._proxy._lock:
            self._proxy._open.discard(self)


_OF_KEY = {
    "GET": (("uploadId", "ListParts"), ("", "GetObject")),
    "HEAD": (("", "HeadObject"),),
    "PUT": (("partNumber", "UploadPart"), ("", "PutObject")),
    "POST": (
        ("uploads", "CreateMultipartUpload"),
        ("uploadId", "CompleteMultipartUpload"),
    ),
    "DELETE": (("uploadId", "AbortMultipartUpload"), ("", "DeleteObject")),
}
_OF_BUCKET = {
    "GET": (
        ("uploads", "ListMultipartUploads"),
        ("versioning", "GetBucketVersioning"),
        ("object-lock", "GetObjectLockConfiguration"),
        ("", "ListObjects"),
    ),
    "HEAD": (("", "HeadBucket"),),
    "PUT": (("", "CreateBucket"),),
    "POST": (("delete", "DeleteObjects"),),
    "DELETE": (("", "DeleteBucket"),),
}
"""S3's operations by method and a word in the query; the first that is there counts."""


def _operation(method: str, key: str, query: dict[str, str]) -> str:
    for word, operation in (_OF_KEY if key else _OF_BUCKET).get(method, ()):
        if not word or word in query:
            return operation
    return method
