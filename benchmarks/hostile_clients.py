"""Attacks on a real gateway over HTTP: what they get, and what they cost the others.

python benchmarks/hostile_clients.py               all of them, at full size
python benchmarks/hostile_clients.py --scale 0.02  smaller, as the test suite does

While each attack runs, another client asks for a model's metadata again and again.
Ends with status 1 if an attack got something else than it should, if the other client
was not answered, or if a line of the log is not one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import re
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import harness
from harness import MIB
from transfer import make_file, publish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

HEAD_TIMEOUT_S = 15.0
"""The gateway's default: enough to open all connections in. Smaller: a fifth of it."""
STALL_TIMEOUT_S = 5.0
"""Half of it at a smaller scale."""
KEEP_ALIVE_S = 5
CONNECTIONS = 10_500
MODEL_SIZE = 48 * MIB
"""More than the kernel takes in for a client who does not read."""
LEAST_ASKED = 10
"""Times that the other client asks during even the shortest attack."""
FORM = "boundary-of-an-attack"

Outcome = Counter[str]
"""How often an attack got what: a status with its code, or how its connection ended."""


@dataclass
class Target:
    """The gateway under attack, and how large attacks are."""

    host: str
    port: int
    token: str
    scale: float
    loop: asyncio.AbstractEventLoop | None = None
    connecting: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(200)
    )

    @property
    def head_timeout_s(self) -> float:
        return HEAD_TIMEOUT_S if self.scale == 1 else HEAD_TIMEOUT_S / 5

    @property
    def stall_timeout_s(self) -> float:
        return STALL_TIMEOUT_S if self.scale == 1 else STALL_TIMEOUT_S / 2

    def many(self, count: int) -> int:
        """Return how many of something are used at this scale."""
        return max(8, int(count * self.scale))

    def head(self, method: str, path: str, *lines: str, token: bool = True) -> bytes:
        """Return a request's head."""
        all_lines = [f"{method} {path} HTTP/1.1", "Host: gateway", *lines]
        if token:
            all_lines.append(f"Authorization: Bearer {self.token}")
        return "\r\n".join([*all_lines, "", ""]).encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection; only some at a time, as a listener's queue is short."""
        async with self._turns():
            return await asyncio.open_connection(self.host, self.port)

    def _turns(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.loop, self.connecting = loop, asyncio.Semaphore(200)
        return self.connecting

    async def ask(self, request: bytes) -> str:
        """Send a request; return what its connection got."""
        reader, writer = await self.connect()
        try:
            return await self.send(reader, writer, request)
        finally:
            await _close(writer)

    async def send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: bytes,
    ) -> str:
        """Send a request on a connection; return what it got."""
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        return await outcome_of(reader)


@dataclass
class Attack:
    """One way to do harm, and what it should get."""

    name: str
    expected: str
    """A pattern that each outcome matches."""
    run: Callable[[Target], Awaitable[Outcome]]


@dataclass
class Others:
    """What another client saw while an attack ran."""

    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(5):
            await writer.wait_closed()


async def outcome_of(reader: asyncio.StreamReader) -> str:
    """Return the first answer of a connection as a status and a problem's code."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split()[1].decode()
        if b"problem+json" not in head:
            return status
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        content = await reader.readexactly(int(found[1]) if found else 0)
        return f"{status} {json.loads(content)['code']}"
    except asyncio.IncompleteReadError as error:
        return "cut off" if error.partial else "closed"
    except ConnectionError:
        return "closed"


# --- attacks


async def smuggle(target: Target) -> Outcome:
    """Hide a request in what servers may read in two ways."""
    post = "POST /auth/token HTTP/1.1\r\nHost: gateway\r\n"
    get = "GET /health HTTP/1.1\r\nHost: gateway\r\n"
    chunked = post + "Transfer-Encoding: chunked\r\n\r\n"
    hidden = "GET /health/ready HTTP/1.1\r\nHost: gateway\r\n\r\n"
    requests = [
        post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        post + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        post + "Content-Length: +3\r\n\r\nabc",
        post + "Content-Length : 44\r\n\r\n",
        post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        get + "A: b\r\n folded: c\r\n\r\n",
        get + "A: b\rContent-Length: 44\r\n\r\n",
        get + "A: b\0c\r\n\r\n",
        get + "Host: other\r\n\r\n",
        "GET /health HTTP/1.1\nHost: gateway\n\n",
        "GET /health\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        post + "Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        chunked + "3\nabc\r\n0\r\n\r\n",
        chunked + "3\r\nabcd\r\n0\r\n\r\n",
        chunked + "0x3\r\nabc\r\n0\r\n\r\n",
        chunked + "3;a\nabc\r\n0\r\n\r\n",
    ]
    got: Outcome = Counter()
    for request in requests:
        reader, writer = await target.connect()
        writer.write((request + hidden).encode("latin-1"))
        answers = len(re.findall(rb"HTTP/1\.1 \d{3} ", await reader.read()))
        await _close(writer)
        once = await target.ask((request + hidden).encode("latin-1"))
        got[once if answers == 1 else f"{answers} answers"] += 1
    return got


async def slow_heads(target: Target) -> Outcome:
    """Send heads a byte at a time, for ever."""

    async def trickle() -> str:
        reader, writer = await target.connect()
        answer, sent = asyncio.create_task(outcome_of(reader)), 0
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                writer.write(b"GET / HTTP/1.1\r\nA: "[sent : sent + 1] or b"b")
                sent += 1
                await asyncio.wait([answer], timeout=0.5)
        await _close(writer)
        return await answer

    return Counter(await _all(trickle() for _ in range(target.many(2000))))


async def slow_forms(target: Target) -> Outcome:
    """Send the bodies of uploads a byte at a time, with a token."""
    head = target.head(
        "POST",
        "/models",
        f"Content-Type: multipart/form-data; boundary={FORM}",
        f"Content-Length: {1 << 30}",
    ) + _part("file", b'; filename="m.tflite"')
    return Counter(
        await _all(_trickle_body(target, head) for _ in range(target.many(30)))
    )


async def slow_sign_ins(target: Target) -> Outcome:
    """Send the bodies of sign-ins a byte at a time, without a token."""
    head = target.head(
        "POST",
        "/auth/token",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Length: 10000",
        token=False,
    )
    return Counter(
        await _all(_trickle_body(target, head) for _ in range(target.many(500)))
    )


async def _trickle_body(target: Target, head: bytes) -> str:
    reader, writer = await target.connect()
    writer.write(head)
    answer = asyncio.create_task(outcome_of(reader))
    with contextlib.suppress(ConnectionError):
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=0.25)
    await _close(writer)
    return await answer


async def idle(target: Target) -> Outcome:
    """Open connections and say nothing."""
    return Counter(await _all(target.ask(b"") for _ in range(target.many(10_000))))


async def idle_after_a_request(target: Target) -> Outcome:
    """Ask once on each connection, and keep it."""

    async def ask_and_stay() -> str:
        reader, writer = await target.connect()
        first = await target.send(
            reader, writer, target.head("GET", "/health", token=False)
        )
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the gateway closes it
        await _close(writer)
        return first

    return Counter(await _all(ask_and_stay() for _ in range(target.many(10_000))))


async def too_many_connections(target: Target) -> Outcome:
    """Open more connections than the gateway takes; ask on the last of them."""
    opened = await asyncio.gather(
        *(target.connect() for _ in range(target.many(CONNECTIONS)))
    )
    request = target.head("GET", "/health", token=False)
    # A few may have been closed meanwhile: only those beyond all that are told.
    got = Counter([await target.ask(request) for _ in range(20)])
    await asyncio.gather(*(_close(writer) for _, writer in opened))
    return got


async def large_heads(target: Target) -> Outcome:
    """Send heads of megabytes, in every part of them."""
    get = b"GET /health HTTP/1.1\r\nHost: gateway\r\n"
    size = int(8e6)
    bombs = [
        get + b"A: " + b"b" * size,
        get + b"a" * size,
        get + b"A: b\r\n" * (size // 6),
        b"GET /" + b"a" * size,
        b"GET /?" + b"a=b&" * (size // 4),
        b"\r\n" * (size // 2),
        b"POST /auth/token HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n0\r\nA: " + b"b" * size,
    ]
    got: Outcome = Counter()
    for _ in range(target.many(20)):
        got.update(await _all(target.ask(bomb) for bomb in bombs))
    return got


async def endless_pipeline(target: Target) -> Outcome:
    """Send requests and read no answer."""

    async def pour() -> str:
        reader, writer = await target.connect()
        one = target.head("GET", "/health", token=False)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                for _ in range(1000):
                    writer.write(one * 100)
                    await writer.drain()
        answers = 0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(MIB):
                answers += piece.count(b"HTTP/1.1 ")
        await _close(writer)
        return "few answers" if answers <= 100 else f"{answers} answers"

    return Counter(await _all(pour() for _ in range(target.many(100))))


async def unread_downloads(target: Target) -> Outcome:
    """Ask for a large file and read nothing of it."""

    async def ask_only() -> str:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(plain, (target.host, target.port))
        await loop.sock_sendall(plain, target.head("GET", "/models/m/download"))
        # Nothing is read until the gateway must have given up.
        await asyncio.sleep(2 * target.stall_timeout_s)
        size = 0
        with contextlib.suppress(ConnectionError):
            while piece := await loop.sock_recv(plain, MIB):
                size += len(piece)
        plain.close()
        return "given up" if size < MODEL_SIZE else "all of it"

    return Counter(await _all(ask_only() for _ in range(target.many(50))))


async def many_parts(target: Target) -> Outcome:
    """Send a form of 100,000 parts."""
    body = _part("tags") * max(1000, target.many(100_000))
    return Counter([await _post_form(target, body) for _ in range(target.many(10))])


async def many_fields_of_a_part(target: Target) -> Outcome:
    """Send a form with one part of 100,000 headers."""
    body = f"--{FORM}\r\n".encode() + b"A: b\r\n" * 100_000
    return Counter([await _post_form(target, body) for _ in range(target.many(10))])


async def single_bytes(target: Target) -> Outcome:
    """Upload a file in HTTP chunks of one byte each."""
    size = max(MIB // 2, int(4 * MIB * target.scale))
    path = Path(tempfile.mkdtemp(dir="/dev/shm")) / "f.tflite"
    make_file(path, size)
    content = path.read_bytes()
    path.unlink()
    path.parent.rmdir()
    body = _part("name") + b"single-bytes\r\n" + _part("file", b'; filename="m.tflite"')
    body += content + f"\r\n--{FORM}--\r\n".encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = target.head(
        "POST",
        "/models",
        f"Content-Type: multipart/form-data; boundary={FORM}",
        "Transfer-Encoding: chunked",
    )
    return Counter([await target.ask(head + chunks)])


async def nested_json(target: Target) -> Outcome:
    """Send JSON of arrays in arrays in arrays."""
    got: Outcome = Counter()
    for body in (b"[" * 60_000, b'{"name":' * 8000, b"[" * 30_000 + b"]" * 30_000):
        got[await _post_json(target, body)] += 1
    return got


async def large_json(target: Target) -> Outcome:
    """Send JSON of megabytes, announced and not."""
    head = ("POST", "/admin/users", "Content-Type: application/json")
    said = target.head(*head, f"Content-Length: {1 << 30}") + b"[" * MIB
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    unsaid = target.head(*head, "Transfer-Encoding: chunked") + chunk * 16
    return Counter(await _all(target.ask(each) for each in (said, unsaid) * 8))


async def many_ranges(target: Target) -> Outcome:
    """Ask for 10,000 ranges of a file."""
    got: Outcome = Counter()
    for ranges in (
        ",".join(["0-0"] * 10_000),
        ",".join(["-1"] * 10_000),
        ",".join(f"{n}-{n + 1}" for n in range(0, 8000, 2)),
    ):
        got[
            await target.ask(
                target.head("HEAD", "/models/m/download", f"Range: bytes={ranges}")
            )
        ] += 1
    return got


async def absurd_pages(target: Target) -> Outcome:
    """Ask for pages that no list has."""
    numbers = ["0", "-1", "9" * 30, str(1 << 63), "1e9", "\u0661", "", "0x10", "1;"]
    got: Outcome = Counter()
    for number in numbers:
        text = urllib.parse.quote(number)
        for query in (f"page={text}", f"page_size={text}", f"page=1&page_size={text}"):
            got[await target.ask(target.head("GET", f"/models?{query}"))] += 1
    return got


TEXTS = {
    "NUL": "a\0b",
    "control characters": "a\x01\x08\x0b\x1b[31m\x7f\x9fb",
    "line ends": 'a\r\nb\n{"event": "forged"}\u2028c\u2029d\x85e',
    "right to left": "a\u202eb\u2066c",
    "beyond the first plane": "\U0001f916\U0010ffff",
    "half of a character": "a\ud800b",
    "combining": "e" + "\u0301" * 100,
    "long": "\xe4" * 70_000,
    "template": "{{7*7}}${7*7}%s%n<script>alert(1)</script>'; DROP TABLE models;--",
}
FIELDS = (
    "name",
    "framework",
    "model_type",
    "file_format",
    "description",
    "tags",
    "cid",
    "filename",
)
QUERIES = (
    "q",
    "framework",
    "model_type",
    "format",
    "tags",
    "owner",
    "sort",
    "quantized",
    "safety",
    "page",
)


async def strange_texts(target: Target) -> Outcome:
    """Send every kind of strange text in every field that takes text."""
    got: Outcome = Counter()
    for text in TEXTS.values():
        for outcome in await _send_text(target, text):
            got[outcome] += 1
    return got


async def _send_text(target: Target, text: str) -> list[str]:
    raw = text.encode(errors="surrogatepass")
    quoted = urllib.parse.quote(raw)
    outcomes = []
    for name in FIELDS:
        body = b"".join(
            _part(each) + (raw if each == name else b"m") + b"\r\n"
            for each in {"name", name}
        )
        body += _part("file", b'; filename="m.tflite"') + b"x\r\n"
        outcomes.append(await _post_form(target, body + f"--{FORM}--\r\n".encode()))
    paths = [f"/models?{name}={quoted}" for name in QUERIES]
    paths += [f"/models/{quoted}", f"/models/m/versions/{quoted}", f"/{quoted}"]
    paths += [f"/models/cid/{quoted}", f"/datasets/m/files/{quoted}"]
    outcomes += [await target.ask(target.head("GET", path)) for path in paths]
    for name in ("grant_type", "client_id", "client_secret", "scope"):
        form = {"grant_type": "client_credentials", "client_id": "a"}
        form |= {"client_secret": "b"}
        sent = "&".join(
            f"{key}={quoted if key == name else value}"
            for key, value in {**form, name: ""}.items()
        ).encode()
        head = target.head(
            "POST",
            "/auth/token",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(sent)}",
            token=False,
        )
        outcomes.append(await target.ask(head + sent))
    outcomes.append(
        await _post_json(target, json.dumps({"name": text, "role": text}).encode())
    )
    return outcomes


def _part(name: str, more: bytes = b"") -> bytes:
    return (
        f'--{FORM}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + more
        + b"\r\n\r\n"
    )


async def _post_form(target: Target, body: bytes) -> str:
    head = target.head(
        "POST",
        "/models",
        f"Content-Type: multipart/form-data; boundary={FORM}",
        f"Content-Length: {len(body)}",
    )
    return await target.ask(head + body)


async def _post_json(target: Target, body: bytes) -> str:
    head = target.head(
        "POST",
        "/admin/users",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return await target.ask(head + body)


async def _all(work: Iterator[Awaitable[str]]) -> list[str]:
    return await asyncio.gather(*work)


ATTACKS = [
    Attack("request smuggling (21 ways)", "400 malformed_request", smuggle),
    Attack("slow-loris: heads", "408 request_timeout", slow_heads),
    Attack("slow-loris: forms", "400 incomplete_upload", slow_forms),
    Attack("slow-loris: sign-ins", "408 request_timeout", slow_sign_ins),
    Attack("idle connections", "closed", idle),
    Attack("idle connections, after a request", "200", idle_after_a_request),
    Attack("more connections than allowed", "503 gateway_busy", too_many_connections),
    Attack("heads of 8 MB", "431 head_too_large", large_heads),
    Attack("requests without end, unread", "few answers", endless_pipeline),
    Attack("downloads that nobody reads", "given up", unread_downloads),
    Attack("form of 100,000 parts", "413 too_large", many_parts),
    Attack(
        "form part of 100,000 headers",
        "413 too_large|422 invalid_input",
        many_fields_of_a_part,
    ),
    Attack("upload in chunks of one byte", "20[01]", single_bytes),
    Attack("deeply nested JSON", "422 invalid_input", nested_json),
    Attack("large JSON", "413 too_large", large_json),
    Attack("Range of 10,000 ranges", "200", many_ranges),
    Attack("absurd page numbers", "200|422 invalid_input", absurd_pages),
    Attack("strange texts everywhere", r"(20[01]|4\d\d \w+)", strange_texts),
]


# --- the table


@contextlib.contextmanager
def another_client(target: Target) -> Iterator[Others]:
    """Ask for a model's metadata again and again while the block runs."""
    seen, stop = Others(), threading.Event()

    def ask_on() -> None:
        client = http.client.HTTPConnection(target.host, target.port, timeout=30)
        while not stop.wait(0.02) or len(seen.took_s) < LEAST_ASKED:
            started = time.perf_counter()
            try:
                client.request(
                    "GET",
                    "/models/m",
                    headers={"Authorization": f"Bearer {target.token}"},
                )
                answer = client.getresponse()
                answer.read()
                if answer.status != 200:
                    seen.failures.append(str(answer.status))
            except (OSError, http.client.HTTPException) as error:
                seen.failures.append(type(error).__name__)
                client.close()
            seen.took_s.append(time.perf_counter() - started)
        client.close()

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def memory_of(process_id: int) -> Iterator[list[int]]:
    """Note the memory that a process holds (VmRSS) while the block runs, in bytes."""
    held, stop = [_resident(process_id)], threading.Event()

    def note() -> None:
        while not stop.wait(0.02):
            held.append(_resident(process_id))

    thread = threading.Thread(target=note)
    thread.start()
    try:
        yield held
    finally:
        stop.set()
        thread.join()


def _resident(process_id: int) -> int:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_all(target: Target, process_id: int, attacks: list[Attack]) -> list[str]:
    """Print a row for each attack; return what went wrong."""
    wrong = []
    print("\n| attack | expected | got | memory before → most | other client |")
    print("|---|---|---|--:|--:|")
    for attack in attacks:
        with memory_of(process_id) as held, another_client(target) as others:
            got = asyncio.run(attack.run(target))
        told = ", ".join(f"{count} × {what}" for what, count in got.most_common())
        took = [each * 1000 for each in others.took_s] or [0.0]
        allowed = attack.expected.replace("|", " or ")
        print(
            f"| {attack.name} | {allowed} | {told} "
            f"| {held[0] / MIB:.0f} → {max(held) / MIB:.0f} MiB "
            f"| {statistics.median(took):.1f} ms, worst {max(took):.0f} ms |",
            flush=True,
        )
        unexpected = [what for what in got if not re.fullmatch(attack.expected, what)]
        wrong += [f"{attack.name}: {what}" for what in unexpected]
        if others.failures and attack.run is not too_many_connections:
            wrong.append(f"{attack.name}: others got {Counter(others.failures)}")
    return wrong


def check_log(path: Path) -> list[str]:
    """Return the lines of a log that are not one JSON object each."""
    wrong = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            if line and not isinstance(json.loads(line), dict):
                wrong.append(line)
        except ValueError:
            wrong.append(line)
    return [f"log: {line[:200]!r}" for line in wrong]


def settings_for(target: Target) -> dict[str, str]:
    """Return the gateway's settings: short timeouts, and no rates in the way."""
    return {
        "VISION_O3_HEAD_TIMEOUT_S": str(target.head_timeout_s),
        "VISION_O3_STALL_TIMEOUT_S": str(target.stall_timeout_s),
        "VISION_O3_KEEP_ALIVE_S": str(KEEP_ALIVE_S),
        "VISION_O3_MAX_CONNECTIONS": str(target.many(CONNECTIONS)),
        "VISION_O3_MAX_REQUESTS_PER_MINUTE": "0",
        "VISION_O3_MAX_SIGN_INS_PER_MINUTE": "0",
        "VISION_O3_LOG_LEVEL": "DEBUG",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", help="attacks whose name holds this")
    parser.add_argument("--database", help="a PostgreSQL URL; default: SQLite")
    options = parser.parse_args()
    harness.describe_machine()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attacks = [a for a in ATTACKS if not options.only or options.only in a.name]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        home = Path(directory)
        make_file(home / "m.tflite", MODEL_SIZE)
        settings = settings_for(target := Target("", 0, "", options.scale))
        if options.database:
            settings["VISION_O3_DATABASE_URL"] = options.database
        with harness.gateway(home, settings=settings) as gateway:
            publish(gateway, home / "m.tflite", "m")
            parts = urlsplit(gateway.url)
            target.host, target.port = str(parts.hostname), int(parts.port or 80)
            target.token = gateway.token()
            wrong = run_all(target, gateway.process.pid, attacks)
            peak = harness.peak_memory(gateway.process.pid)
            print(f"\nThe gateway's most memory: {peak / MIB:.0f} MiB")
        wrong += check_log(home / "gateway.log")
    for each in wrong:
        print(f"WRONG: {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
