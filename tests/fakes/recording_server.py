"""A small application behind the gateway's own HTTP protocol, which notes requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from vision_o3.gateway.http_protocol import ConnectionLimits, http_protocol

BIG = 12 << 20
LIMITS = ConnectionLimits(
    connections=100, head_size=16 << 10, head_timeout_s=20, stall_timeout_s=20
)


@dataclass
class Recorder:
    """An application that answers with the size of the body, or with much.

    At ``/unread`` it does not look at the body, at ``/held`` it answers when the caller
    has left.
    """

    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and size of the body."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Of the last request, when its body had ended."""
    client: tuple[str, int] | None = None
    """Where the last request came from."""
    scheme: str = ""
    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when it was told that who asked for ``/held`` has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        self.begun.set()
        size, more = 0, scope["path"] != "/unread"
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        self.asked.append((scope["method"], scope["path"], size))
        self.headers = list(scope["headers"])
        self.client, self.scheme = scope["client"], scope["scheme"]
        if scope["path"] == "/held":
            assert (await receive())["type"] == "http.disconnect"
            self.left.set()
        content = bytes(BIG) if scope["path"] == "/big" else b"%d" % size
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": content})


@dataclass
class RecordingServer:
    """The application on a loopback port."""

    app: Recorder
    server: uvicorn.Server
    port: int

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def exchange(self, *pieces: bytes) -> bytes:
        """Send bytes; return all that is answered until the connection is closed."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read_all(connection)

    def wait_until_alone(self) -> None:
        """Return when there is no connection; fail if there always is one."""
        deadline = time.monotonic() + 60
        while self.connections:
            assert time.monotonic() < deadline, "a connection was kept"
            time.sleep(0.01)


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    answer = bytearray()
    while piece := connection.recv(1 << 16):
        answer += piece
    return bytes(answer)


@contextmanager
def recording_server(
    limits: ConnectionLimits = LIMITS, **options: Any
) -> Iterator[RecordingServer]:
    app = Recorder()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            http=http_protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            **options,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RecordingServer(app, server, port)
    finally:
        server.should_exit = True
        thread.join()
