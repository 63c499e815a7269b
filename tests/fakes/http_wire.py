"""Just enough of HTTP/1.1 to pass messages on: heads, bodies, resets. For fakes."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

PIECE = 256 << 10
_LONGEST_LINE = 64 << 10


class Wire:
    """A socket with a buffer for lines."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    def read_line(self) -> bytes:
        """Return a line without its end; nothing at the end of the stream."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise EOFError("A line is too long.")
            received = self._socket.recv(PIECE)
            if not received:
                raise EOFError("The stream ended in a line.")
            self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def read_some(self, most: int) -> bytes:
        """Return 1 to ``most`` bytes; none at the end of the stream."""
        if self._buffer:
            taken = bytes(self._buffer[:most])
            del self._buffer[:most]
            return taken
        return self._socket.recv(min(most, PIECE))

    def at_end(self) -> bool:
        """Say whether the stream has ended; waits for a byte if need be."""
        if not self._buffer:
            self._buffer += self._socket.recv(PIECE)
        return not self._buffer

    def send(self, content: bytes) -> None:
        if content:
            self._socket.sendall(content)

    def has_left(self, *, within_s: float) -> bool:
        readable, _, _ = select.select([self._socket], [], [], within_s)
        if not readable:
            return False
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def end(self) -> None:
        """Wake whoever waits on it, from any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Close so that the peer sees a reset, not an end."""
        with suppress(OSError):
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


@dataclass(slots=True)
class Head:
    """The first line and the headers of a message."""

    first: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    def find(self, name: str) -> str | None:
        for each, value in self.headers:
            if each.lower() == name:
                return value
        return None

    def replace(self, name: str, value: str) -> None:
        self.headers = [
            (each, value if each.lower() == name else old) for each, old in self.headers
        ]

    def take_expectation(self) -> bool:
        """Say whether the sender waits for 100 Continue; the store need not know.

        No signature covers that header.
        """
        expected = self.find("expect") is not None
        self.headers = [h for h in self.headers if h[0].lower() != "expect"]
        return expected

    @property
    def chunked(self) -> bool:
        return "chunked" in (self.find("transfer-encoding") or "").lower()

    @property
    def ends_connection(self) -> bool:
        if "close" in (self.find("connection") or "").lower():
            return True
        is_answer = self.first.startswith("HTTP/")
        status = self.first.split(" ", 2)[1] if is_answer else ""
        return (
            is_answer
            and status not in ("204", "304")
            and not self.chunked
            and self.find("content-length") is None
        )

    def encode(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def frame(self, piece: bytes) -> bytes:
        """Return a piece of the body as it goes over the wire."""
        if not self.chunked or not piece:
            return piece
        return b"%x\r\n%b\r\n" % (len(piece), piece)

    @property
    def last_frame(self) -> bytes:
        return b"0\r\n\r\n" if self.chunked else b""


def read_head(wire: Wire) -> Head | None:
    if wire.at_end():
        return None
    head = Head(wire.read_line().decode("latin-1"))
    while line := wire.read_line():
        name, _, value = line.decode("latin-1").partition(":")
        head.headers.append((name, value.strip()))
    return head


def read_body(wire: Wire, head: Head, *, to_end: bool) -> Iterator[bytes]:
    """Yield a message's body without its framing."""
    length = head.find("content-length")
    if head.chunked:
        while size := int(wire.read_line().split(b";")[0], 16):
            yield from _exactly(wire, size)
            wire.read_line()
        while wire.read_line():
            pass
    elif length is not None:
        yield from _exactly(wire, int(length))
    elif to_end:
        while piece := wire.read_some(PIECE):
            yield piece


def _exactly(wire: Wire, size: int) -> Iterator[bytes]:
    while size:
        piece = wire.read_some(size)
        if not piece:
            raise EOFError("The stream ended in a body.")
        size -= len(piece)
        yield piece
