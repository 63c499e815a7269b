"""A server of raw sockets that misbehaves on purpose, byte by byte.

A ``FakeGateway`` says what the honest answer is; a ``Fault`` decides what goes over the
wire. It serves HTTP, HTTPS, and as an HTTP proxy (``CONNECT`` too). What it has sent is
counted as it is handed to the socket. Python 3.8, standard library only; certificates
are made with the ``openssl`` command.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
import time
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
    Union,
)
from urllib.parse import urlsplit

from tests.fakes.fake_gateway import Answer, FakeGateway, Lie, Published
from vision_o3.content.dag import ContentHasher

MIB = 1 << 20
CONNECTED = "(connected)"
"""In the place of a path: before a request is read, or TLS begins."""
_SEND_BUFFER = 64 << 10
"""Bytes that may be on their way; what is counted is little more than what arrives."""
_PIECE = 64 << 10
_LONGEST_HEAD = 64 << 10
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: closing sends RST, and drops what was not sent."""


class Exchange:
    """A request, what honesty would answer, and the socket.

    Attributes:
        target: As the request line has it.
        asked: The request's headers by lower-case name.
        answer: From the gateway; empty before the request.
        sent: Bytes.
        open: Whether another request may come on this connection.
    """

    def __init__(
        self,
        server: MisbehavingServer,
        connection: socket.socket,
        target: str = CONNECTED,
        asked: Mapping[str, str] = MappingProxyType({}),
        answer: Optional[Answer] = None,
    ) -> None:
        self.server = server
        self.target = target
        self.asked = asked
        self.answer = answer or Answer()
        self.sent = 0
        self.open = True
        self._connection = connection

    @property
    def range(self) -> Optional[Tuple[int, int]]:
        """The bytes that are asked for, as HTTP says it: the last one included."""
        first, _, last = self.asked.get("range", "")[len("bytes=") :].partition("-")
        return (int(first), int(last)) if first and last else None

    @property
    def head(self) -> bytes:
        """Status line and headers."""
        answer = self.answer
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        if answer.chunked:
            del headers["Content-Length"]
        phrase = HTTPStatus(answer.status).phrase
        lines = [f"HTTP/1.1 {answer.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    @property
    def message(self) -> bytes:
        """The whole answer."""
        return self.head + self.answer.body

    def send(self, message: Union[bytes, memoryview]) -> None:
        """Send by small pieces, so that what is counted was taken by the socket."""
        rest = memoryview(message)
        while rest:
            self._connection.sendall(rest[:_PIECE])
            self.sent += len(rest[:_PIECE])
            rest = rest[_PIECE:]

    def pause(self, seconds: float) -> None:
        """Wait, unless the server stops."""
        self.server.stopping.wait(seconds)

    def stall(self) -> None:
        """Send nothing more until the client leaves or the server stops."""
        self.open = False
        while self._connection.recv(_PIECE):
            pass

    def await_bytes(self) -> None:
        """Wait until the client has sent something."""
        self._connection.recv(1, socket.MSG_PEEK)

    def hang_up(self) -> None:
        """Close the connection in order."""
        self.open = False
        self._connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Break the connection with RST."""
        self.open = False
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._connection.close()


Fault = Callable[[Exchange], None]


class MisbehavingServer:
    """Honest until it is told otherwise.

    Args:
        gateway: What it serves; its ``url`` is not touched.
        tls: Serve HTTPS with this; as a proxy, be the host that was asked for.

    Attributes:
        exchanges: All that were begun.
    """

    def __init__(
        self, gateway: FakeGateway, tls: Optional[ssl.SSLContext] = None
    ) -> None:
        self.exchanges: List[Exchange] = []
        self.stopping = threading.Event()
        self._gateway = gateway
        self._tls = tls
        self._faults: List[Tuple[str, List[Fault]]] = []
        self._always: Dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._port = 0
        self._listener: Optional[socket.socket] = None
        self._connections: Set[socket.socket] = set()
        self._accepting: List[threading.Thread] = []
        self._serving: List[threading.Thread] = []

    # What the test does

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._port}"

    def misbehave(self, ending: str, *faults: Fault) -> None:
        """Do so with the next answers to paths that end so, one fault for each."""
        self._faults.append((ending, list(faults)))

    def always(self, ending: str, fault: Fault) -> None:
        """Do so with all answers to paths that end so."""
        self._always[ending] = fault

    def behave(self) -> None:
        """Be honest from now on."""
        self._faults.clear()
        self._always.clear()

    def sent(self, ending: str) -> int:
        """Return the bytes sent, heads too, for paths that end so."""
        return sum(each.sent for each in self.exchanges if _ends(each.target, ending))

    def count(self, ending: str) -> int:
        """Return how many requests there were for paths that end so."""
        return sum(_ends(each.target, ending) for each in self.exchanges)

    def last(self, ending: str) -> Exchange:
        """Return the newest exchange whose path ends so."""
        return [each for each in self.exchanges if _ends(each.target, ending)][-1]

    @contextlib.contextmanager
    def serving(self) -> Iterator[MisbehavingServer]:
        """Serve on a free port of the loopback interface; ``url`` says where."""
        self.listen()
        try:
            yield self
        finally:
            self.stopping.set()
            self.stop_listening()
            for thread in self._accepting:
                thread.join()
            self.settle()

    def listen(self) -> None:
        """Take connections, again at the same port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(64)
        self._port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accepting, self._accept, listener)

    def stop_listening(self) -> None:
        """Refuse connections, and break those that are there."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # not the one of TLS, which waits
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def settle(self) -> None:
        """Return when all connections are closed."""
        for thread in self._serving:
            thread.join()

    # Threads

    def _start(
        self,
        threads: List[threading.Thread],
        work: Callable[[socket.socket], None],
        taken: socket.socket,
    ) -> None:
        thread = threading.Thread(target=work, args=(taken,), daemon=True)
        threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            self._start(self._serving, self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            # OSError: the client left, or the server stops. ValueError: so does a
            # socket that TLS has already let go of.
            with contextlib.suppress(OSError, ValueError):
                self._serve_all(connection)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _serve_all(self, connection: socket.socket) -> None:
        fault = self._next_fault(CONNECTED)
        if fault is not None:
            exchange = Exchange(self, connection)
            self.exchanges.append(exchange)
            fault(exchange)
            if not exchange.open:
                return
        if self._tls is not None and connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self._serve_tls(connection, self._tls)
        else:
            self._serve_requests(connection)

    def _serve_tls(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        with self._lock:
            self._connections.discard(connection)
        wrapped = tls.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        with self._lock:
            self._connections.add(wrapped)
        try:
            wrapped.do_handshake()
            self._serve_requests(wrapped)
        finally:
            with self._lock:
                self._connections.discard(wrapped)
            wrapped.close()

    def _serve_requests(self, connection: socket.socket) -> None:
        left = b""
        while True:
            head, found, left = _read_head(connection, left)
            if not found:
                return
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ")
            given = (line.split(": ", 1) for line in lines[1:])
            asked = {name.lower(): value for name, value in given}
            tunnel = method == "CONNECT" and self._tls is not None
            answer = Answer()
            if not tunnel:
                answer = self._gateway.answer(method, target, asked, b"")
            exchange = Exchange(self, connection, target, asked, answer)
            self.exchanges.append(exchange)
            fault = self._next_fault(_path_of(target)) or honest
            fault(exchange)
            if not exchange.open:
                return
            if tunnel and self._tls is not None:
                self._serve_tls(connection, self._tls)
                return

    def _next_fault(self, path: str) -> Optional[Fault]:
        with self._lock:
            for ending, faults in self._faults:
                if _ends(path, ending) and faults:
                    return faults.pop(0)
            for ending, fault in self._always.items():
                if _ends(path, ending):
                    return fault
        return None


def _ends(target: str, ending: str) -> bool:
    path = _path_of(target)
    return (path == CONNECTED) == (ending == CONNECTED) and path.endswith(ending)


def _path_of(target: str) -> str:
    """Return the path; of a tunnel, the host and port that it is to lead to."""
    return urlsplit(target).path if "/" in target else target


def _read_head(connection: socket.socket, read: bytes) -> Tuple[bytes, bytes, bytes]:
    while b"\r\n\r\n" not in read and len(read) < _LONGEST_HEAD:
        received = connection.recv(_PIECE)
        if not received:
            break
        read += received
    return read.partition(b"\r\n\r\n")


# Faults: how answers go over the wire


def honest(exchange: Exchange) -> None:
    """Send what is right."""
    exchange.send(exchange.message)


def lying(*lies: Lie) -> Fault:
    """Send another answer, in an orderly way."""

    def send(exchange: Exchange) -> None:
        for lie in lies:
            lie(exchange.answer)
        exchange.send(exchange.message)

    return send


def raw(message: bytes) -> Fault:
    """Send exactly these bytes, and hang up."""

    def send(exchange: Exchange) -> None:
        exchange.send(message)
        exchange.hang_up()

    return send


def headers(*lines: str, without: str = "Content-Length") -> Fault:
    """Send the right body under other headers, and hang up.

    Args:
        *lines: Added before the others.
        without: The start of lines that are left out.
    """

    def send(exchange: Exchange) -> None:
        status, *old = exchange.head.decode("latin-1").split("\r\n")[:-2]
        kept = [line for line in old if not line.startswith(without)]
        head = "\r\n".join([status, *lines, *kept, "", ""])
        exchange.send(head.encode("latin-1") + exchange.answer.body)
        exchange.hang_up()

    return send


def hang_up(exchange: Exchange) -> None:
    """Close the connection."""
    exchange.hang_up()


def reset(exchange: Exchange) -> None:
    """Break the connection."""
    exchange.reset()


def stall(exchange: Exchange) -> None:
    """Say nothing."""
    exchange.stall()


def bit_rot(offset: int) -> Fault:
    """Change one bit of the file, in whatever range of it is sent."""

    def send(exchange: Exchange) -> None:
        changed = bytearray(exchange.answer.body)
        at = offset - (exchange.range or (0, 0))[0]
        if 0 <= at < len(changed):
            changed[at] ^= 1
        exchange.answer.body = bytes(changed)
        exchange.send(exchange.message)

    return send


def until(count: int, end: Fault) -> Fault:
    """Send so many bytes of the answer, heads included, and then do ``end``."""

    def send(exchange: Exchange) -> None:
        exchange.send(exchange.message[:count])
        end(exchange)

    return send


def until_body(count: int, end: Fault) -> Fault:
    """Send the head, so many bytes of the body, and then do ``end``."""

    def send(exchange: Exchange) -> None:
        exchange.send(exchange.head + exchange.answer.body[:count])
        end(exchange)

    return send


def drip(from_byte: int, every_s: float = 0.05) -> Fault:
    """Send single bytes from some byte of the answer on."""

    def send(exchange: Exchange) -> None:
        message = exchange.message
        exchange.send(message[:from_byte])
        for at in range(from_byte, len(message)):
            exchange.send(message[at : at + 1])
            exchange.pause(every_s)

    return send


def drip_body(exchange: Exchange) -> None:
    """Send the head, and then single bytes."""
    drip(len(exchange.head))(exchange)


def endless(head: bytes, unit: bytes) -> Fault:
    """Send ``head``, and then ``unit`` until nobody listens."""

    def send(exchange: Exchange) -> None:
        exchange.send(head)
        units = unit * (1 + 4096 // len(unit))
        while not exchange.server.stopping.is_set():
            exchange.send(units)

    return send


def chunks(frames: Callable[[bytes], bytes]) -> Fault:
    """Send the body as ``frames`` makes it, announced as chunked; then hang up."""

    def send(exchange: Exchange) -> None:
        body, exchange.answer.chunked = exchange.answer.body, True
        exchange.answer.headers["Transfer-Encoding"] = "chunked"
        exchange.send(exchange.head + frames(body))
        exchange.hang_up()

    return send


def away_for(seconds: float, after: int) -> Fault:
    """Send so many bytes of the body; stop serving; come back at the same port."""

    def send(exchange: Exchange) -> None:
        exchange.send(exchange.head + exchange.answer.body[:after])
        server = exchange.server
        server.stop_listening()
        exchange.pause(seconds)
        if not server.stopping.is_set():
            server.listen()
        exchange.open = False

    return send


# Large files


class GeneratedFile:
    """A large file that is made as it is sent. No two leaves are the same.

    Attributes:
        size: Bytes.
        sent: Bytes sent of each leaf, by its number.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent: Dict[int, int] = {}
        self._tail = bytes(range(251)) * (MIB // 251 + 1)
        self._lock = threading.Lock()
        self._free_at = 0.0

    def leaf(self, number: int) -> memoryview:
        """Return the bytes of a leaf."""
        end = min(MIB, self.size - number * MIB)
        leaf = number.to_bytes(8, "big") + self._tail[: MIB - 8]
        return memoryview(leaf)[:end]

    def publish(self, gateway: FakeGateway, name: str) -> str:
        """Publish it as a model's next version; return its CID."""
        hasher = ContentHasher()
        for number in range(-(-self.size // MIB)):
            hasher.update(self.leaf(number))
        dag = hasher.finish()
        document = gateway.publish(name, b"")
        document.update(cid=str(dag.root), file_size=self.size)
        gateway.published["models"][-1] = Published(document, b"", dag)
        return str(dag.root)

    def serve(self, rate: Optional[float] = None) -> Fault:
        """Answer whatever range is asked for.

        Args:
            rate: Bytes a second of all connections together; default: no limit.
        """

        def send(exchange: Exchange) -> None:
            start, end = self._begin(exchange)
            for number in range(start // MIB, -(-end // MIB)):
                leaf = self.leaf(number)
                leaf = leaf[max(0, start - number * MIB) : end - number * MIB]
                for at in range(0, len(leaf), _PIECE):
                    piece = leaf[at : at + _PIECE]
                    if rate is not None:
                        exchange.pause(self._turn(len(piece) / rate))
                    exchange.send(piece)
                    with self._lock:
                        self.sent[number] = self.sent.get(number, 0) + len(piece)

        return send

    def _begin(self, exchange: Exchange) -> Tuple[int, int]:
        """Send the head; return what is to follow: ``[start, end)``."""
        answer = exchange.answer
        start, end, answer.body = 0, self.size, b""
        if exchange.range is not None:
            start, last = exchange.range
            end = min(last + 1, self.size)
            answer.status = 206
            answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{self.size}"
        answer.headers["Content-Length"] = str(end - start)
        exchange.send(exchange.head)
        return start, end

    def _turn(self, takes_s: float) -> float:
        """Return how long to wait for one's turn on the link."""
        now = time.monotonic()
        with self._lock:
            begins = max(now, self._free_at)
            self._free_at = begins + takes_s
        return begins - now


# Certificates


class Authority:
    """A certificate authority of its own, made with the ``openssl`` command.

    Attributes:
        certificate: Its own, to be trusted.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.certificate = directory / "authority.pem"
        self._directory = directory
        self._key = directory / "key.pem"
        self._run("ecparam -name prime256v1 -genkey -noout -out", self._key)
        self._run(
            "req -x509 -new -subj /CN=Authority -days 2 "
            "-addext keyUsage=critical,keyCertSign -key",
            self._key,
            "-out",
            self.certificate,
        )

    def issue(self, name: str, days: int = 2) -> ssl.SSLContext:
        """Return what a server needs to be ``name`` (``IP:…`` or ``DNS:…``)."""
        request, chain = self._directory / "request.csr", self._directory / "chain.pem"
        extensions = self._directory / "extensions"
        # Python 3.13 asks for the second.
        extensions.write_text(f"subjectAltName={name}\nauthorityKeyIdentifier=keyid\n")
        self._run("req -new -subj /CN=server -key", self._key, "-out", request)
        self._run(
            f"x509 -req -CAcreateserial -days {days} -in",
            request,
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-extfile",
            extensions,
            "-out",
            chain,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, self._key)
        return context

    @staticmethod
    def _run(command: str, *more: Union[str, Path]) -> None:
        subprocess.run(
            ["openssl", *command.split(), *map(str, more)],  # noqa: S607 - from PATH
            check=True,
            capture_output=True,
        )
