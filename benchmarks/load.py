"""Many downloads at once, at little cost to the machine they are measured on.

    python benchmarks/load.py HOST PORT PATH --clients 100 < TOKEN

prints one JSON line of what was seen. With `--probe` one connection asks for a small
answer again and again instead, until its input ends.

One thread waits for all connections. What comes is counted and thrown away in the
kernel (``MSG_TRUNC`` on TCP, Linux): the other core is the gateway's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import select
import socket
import sys
import time
from dataclasses import dataclass

MIB = 1 << 20
_BUFFER = bytearray(MIB)
_LONGEST_HEAD = 64 << 10


@dataclass
class Download:
    """One connection, from its first packet to its last byte."""

    connection: socket.socket
    started: float
    head: bytes = b""
    first_s: float = 0.0
    expected: int = -1
    received: int = 0
    failure: str = ""

    def take_head(self) -> None:
        """Read until the body's first byte is here."""
        piece = self.connection.recv(4096)
        if not piece:
            self.failure = "closed before an answer"
            return
        self.head += piece
        head, separator, body = self.head.partition(b"\r\n\r\n")
        if not separator:
            if len(self.head) > _LONGEST_HEAD:
                self.failure = "no end of the answer's head"
            return
        status = head.split(b" ", 2)[1]
        if status not in {b"200", b"206"}:
            self.failure = f"status {status.decode()}"
            return
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self.expected = int(value)
        self.received = len(body)
        if body:
            self.first_s = time.perf_counter() - self.started

    def take_body(self) -> None:
        """Throw away what has come."""
        size = self.connection.recv_into(_BUFFER, MIB, socket.MSG_TRUNC)
        if size == 0:
            self.failure = f"closed after {self.received} bytes"
            return
        if not self.received:
            self.first_s = time.perf_counter() - self.started
        self.received += size


def run(host: str, port: int, request: bytes, clients: int, stop_after: int) -> None:
    """Download so often at once; print what was seen."""
    poll = select.epoll()
    downloads: dict[int, Download] = {}
    began = time.perf_counter()
    for _ in range(clients):
        connection = socket.create_connection((host, port))
        connection.setblocking(False)
        started = time.perf_counter()
        connection.send(request)
        downloads[connection.fileno()] = Download(connection, started)
        poll.register(connection.fileno(), select.EPOLLIN)
    results = list(downloads.values())
    while downloads:
        events = poll.poll(120)
        if not events:
            for download in downloads.values():
                download.failure = f"nothing for 120 s after {download.received} bytes"
            break
        for number, _ in events:
            download = downloads[number]
            try:
                if download.expected < 0:
                    download.take_head()
                else:
                    download.take_body()
            except OSError as error:
                download.failure = repr(error)
            complete = download.received == download.expected
            enough = stop_after and download.received >= stop_after
            if download.failure or complete or enough:
                poll.unregister(number)
                download.connection.close()
                del downloads[number]
    first = sorted(d.first_s for d in results if not d.failure)
    print(
        json.dumps(
            {
                "took_s": time.perf_counter() - began,
                "right": len(first),
                "failures": sorted({d.failure for d in results if d.failure}),
                "received": sum(d.received for d in results),
                "first_s": first,
                "own_cpu_s": time.process_time(),
            }
        )
    )


def probe(host: str, port: int, path: str, token: str) -> None:
    """Ask for a small answer until the input ends; print the seconds each took."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    taken, failures = [], 0
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        started = time.perf_counter()
        try:
            connection.request(
                "GET", path, headers={"Authorization": f"Bearer {token}"}
            )
            answer = connection.getresponse()
            answer.read()
            failures += answer.status != 200
        except (OSError, http.client.HTTPException):
            failures += 1
            connection.close()
        taken.append(time.perf_counter() - started)
    print(json.dumps({"taken_s": sorted(taken), "failures": failures}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--stop-after", type=int, default=0, help="bytes; 0: never")
    parser.add_argument("--probe", action="store_true")
    options = parser.parse_args()
    token = sys.stdin.readline().strip()
    if options.probe:
        probe(options.host, options.port, options.path, token)
        return
    request = (
        f"GET {options.path} HTTP/1.1\r\nHost: {options.host}:{options.port}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    run(options.host, options.port, request, options.clients, options.stop_after)


if __name__ == "__main__":
    main()
