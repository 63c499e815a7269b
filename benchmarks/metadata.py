"""Metadata requests with and without the cache: how many a second, how long each took.

python benchmarks/metadata.py postgresql://USER@HOST/postgres

Two gateways on one database of their own take turns; one keeps answers in memory, the
other asks the database each time. 100 connections each send their next request when the
last is answered. Client, gateways and database share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import harness
import psycopg
import uvloop
from transfer import make_file, publish

if TYPE_CHECKING:
    from collections.abc import Iterator


class Connection(asyncio.Protocol):
    """Sends one request again and again until the moment comes to stop."""

    def __init__(self, request: bytes, until: float, times: list[float]) -> None:
        self._request = request
        self._until = until
        self._times = times
        self._answer = b""
        self._asked_at = 0.0
        self._transport: asyncio.Transport
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._ask()

    def _ask(self) -> None:
        self._answer = b""
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator:
            return
        if b" 200 " not in head[:16]:
            self._end(RuntimeError(self._answer.decode()))
            return
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < size:
            return
        now = time.perf_counter()
        self._times.append(now - self._asked_at)
        if now < self._until:
            self._ask()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionError("The gateway closed the connection."))

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
            self._transport.close()


async def ask(url: str, path: str, token: str, clients: int, for_s: float) -> Round:
    parts = urlsplit(url)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    times: list[float] = []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    connections = [
        (
            await loop.create_connection(
                lambda: Connection(request, started + for_s, times),
                parts.hostname,
                parts.port,
            )
        )[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(connection.done for connection in connections))
    return Round(len(times) / (time.perf_counter() - started), times)


@dataclass(frozen=True)
class Round:
    rate: float
    times: list[float]


@dataclass
class Contender:
    name: str
    gateway: harness.Gateway
    token: str
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def measure(
    path: str, contenders: list[Contender], clients: int, repeats: int, for_s: float
) -> None:
    for number in range(repeats + 1):
        for each in contenders:
            found = uvloop.run(ask(each.gateway.url, path, each.token, clients, for_s))
            if number:  # the first round warms
                each.rates.append(found.rate)
                each.times += found.times
    base = statistics.median(contenders[0].rates)
    print(f"\n### GET {path}, {clients} connections, {repeats} rounds of {for_s} s\n")
    print("| | requests/s (median) | min–max | p50 ms | p99 ms | ÷ first |")
    print("|---|--:|--:|--:|--:|--:|")
    for each in contenders:
        times = sorted(each.times)
        median = statistics.median(each.rates)
        print(
            f"| {each.name} | {median:,.0f} "
            f"| {min(each.rates):,.0f}–{max(each.rates):,.0f} "
            f"| {times[len(times) // 2] * 1000:.1f} "
            f"| {times[len(times) * 99 // 100] * 1000:.1f} | {median / base:.2f} |"
        )
        each.rates.clear()
        each.times.clear()
    sys.stdout.flush()


@contextlib.contextmanager
def new_database(server_url: str) -> Iterator[str]:
    name = f"vision_o3_bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{server_url.rsplit('/', 1)[0]}/{name}"
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="a PostgreSQL that may be made databases in")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    harness.describe_machine()
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
    ):
        url = stack.enter_context(new_database(options.server))
        secret = secrets.token_urlsafe(48)
        contenders = []
        for name, ttl_s in (("asked each time", "0"), ("kept in memory", "5")):
            home = Path(directory) / ttl_s
            home.mkdir()
            settings = {
                "VISION_O3_DATABASE_URL": url,
                "VISION_O3_STORE": f"{directory}/objects",
                "VISION_O3_JWT_SECRET": secret,
                "VISION_O3_METADATA_TTL_S": ttl_s,
            }
            gateway = stack.enter_context(harness.gateway(home, settings=settings))
            contenders.append(Contender(name, gateway, gateway.token()))
        model = Path(directory) / "m.tflite"
        make_file(model, 1 << 20)
        publish(contenders[0].gateway, model, "m")
        for path in ("/models/m", "/models/m/versions/1"):
            measure(path, contenders, options.clients, options.repeats, options.seconds)


if __name__ == "__main__":
    main()
