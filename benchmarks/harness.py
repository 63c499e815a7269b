"""Measuring by the rules of this project: interleaved, medians, spread, peak memory.

The machine is noisy, so contenders take turns and are compared by ratios within one
run. Nothing here asserts anything about time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MIB = 1 << 20
UNLIMITED = MappingProxyType(
    {
        "VISION_O3_MAX_REQUESTS_PER_MINUTE": "0",
        "VISION_O3_MAX_SIGN_INS_PER_MINUTE": "0",
        "VISION_O3_MAX_DOWNLOADS_PER_USER": "0",
        "VISION_O3_MAX_UPLOADS_PER_USER": "0",
    }
)
"""Settings for what one user does in place of many."""
REPOSITORY = Path(__file__).parent.parent
NAMESPACE = "vision-o3-bench"
LINK = ("10.77.0.1", "10.77.0.2")
"""The two ends of a shaped link between this host and a namespace of our own."""

_CATCH_UP_S = 0.05
"""How far a throttled connection may make up for having been woken late."""


@dataclass(frozen=True)
class Contender:
    """One way to do the same work; ``run`` returns the seconds it took."""

    name: str
    run: Callable[[], float]


def compare(
    title: str, contenders: Sequence[Contender], *, size: int, repeats: int
) -> None:
    """Print a table of the contenders; ratios are to the first one's median time."""
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for contender in contenders:
        contender.run()  # warm
    for _ in range(repeats):
        for contender in contenders:
            times[contender.name].append(contender.run())
    base = statistics.median(times[contenders[0].name])
    print(f"\n### {title} ({size / MIB:,.0f} MiB, {repeats} rounds)\n")
    print("| | median s | min–max s | MB/s | time ÷ first | speed ÷ first |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"| {name} | {median:.3f} | {min(taken):.3f}–{max(taken):.3f} "
            f"| {size / median / 1e6:,.0f} "
            f"| {median / base:.2f} | {base / median:.2f} |"
        )
    sys.stdout.flush()


def describe_machine() -> None:
    """Print what the figures were taken on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    print(
        f"commit {commit} · {model}, {os.cpu_count()} cores · "
        f"Python {platform.python_version()} · {time.strftime('%Y-%m-%d')}"
    )


def timed(command: Sequence[str], **options: object) -> float:
    """Run a command to its end; return the seconds it took."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    return time.perf_counter() - started


def peak_memory(process_id: int) -> int:
    """Return the most memory a process has held, in bytes (VmHWM)."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("The kernel does not say VmHWM.")


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the URL answers; raise if the process ends first."""
    for _ in range(300):
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer.")


@dataclass
class Gateway:
    """A running gateway and a user who may read and publish."""

    url: str
    process: subprocess.Popen[bytes]
    client_id: str
    client_secret: str
    environment: Mapping[str, str]

    def operator(self, *words: str) -> dict[str, Any]:
        """Run a command as the gateway's operator; return the JSON that it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "vision_o3", *words, "--json"],
            env=dict(self.environment),
            check=True,
            capture_output=True,
            text=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def token(self) -> str:
        """Return a fresh token."""
        form = (
            f"grant_type=client_credentials&client_id={self.client_id}"
            f"&client_secret={self.client_secret}"
        )
        with urllib.request.urlopen(
            f"{self.url}/auth/token", data=form.encode()
        ) as answer:
            token: str = json.load(answer)["access_token"]
            return token


@contextlib.contextmanager
def gateway(
    home: Path,
    *,
    inside: Sequence[str] = (),
    host: str = "127.0.0.1",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Gateway]:
    """Run a gateway on SQLite and a directory, unless the settings say otherwise.

    ``inside`` is a command's prefix.
    """
    environment = {
        **os.environ,
        "VISION_O3_DATABASE_URL": f"sqlite:///{home}/registry.db",
        "VISION_O3_STORE": str(home / "objects"),
        "VISION_O3_JWT_SECRET": secrets.token_urlsafe(48),
        **UNLIMITED,
        **settings,
    }
    command = [sys.executable, "-m", "vision_o3"]
    url = f"http://{host}:{free_port()}"
    with (home / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *inside,
                *command,
                "serve",
                "--migrate",
                "--host",
                host,
                "--port",
                url.rsplit(":", 1)[1],
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        try:
            wait_for(f"{url}/health/ready", process)
        except RuntimeError:
            print((home / "gateway.log").read_text()[-2000:], file=sys.stderr)
            raise
        name = f"bench-{secrets.token_hex(4)}"
        added = subprocess.run(
            [*command, "user", "add", name, "--json"]
            + ["--scope", "model:read", "--scope", "model:write"]
            + ["--scope", "dataset:read", "--scope", "dataset:write"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        secret = json.loads(added.stdout)["secret"]
        yield Gateway(url, process, name, secret, environment)
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def nginx(
    home: Path, root: Path, headers: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Serve a directory with nginx as Debian configures it (sendfile on).

    ``headers`` are added to each answer; an ETag among them replaces nginx's own.
    """
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(binary).exists():
        raise RuntimeError("nginx is not installed (Debian: nginx-light).")
    port = free_port()
    home.mkdir(exist_ok=True)
    configuration = home / "nginx.conf"
    added = "".join(f"add_header {name} '{text}'; " for name, text in headers.items())
    etag = "off" if "ETag" in headers else "on"
    configuration.write_text(
        f"""
        daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
        user root;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; sendfile on; tcp_nopush on;
          client_body_temp_path {home}; proxy_temp_path {home};
          fastcgi_temp_path {home}; uwsgi_temp_path {home}; scgi_temp_path {home};
          etag {etag}; {added}
          server {{ listen 127.0.0.1:{port}; root {root}; }}
        }}
        """
    )
    process = subprocess.Popen(
        [binary, "-c", str(configuration), "-e", str(home / "error.log")]
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def throttled(url: str, rate: float) -> Iterator[str]:
    """Pass connections on to a server; each receives ``rate`` bytes a second at most.

    Object stores limit connections so. Yields the URL to use in place of ``url``.
    """
    to = urlsplit(url)
    upstream = (str(to.hostname), int(to.port or 80))

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            with socket.create_connection(upstream) as server:
                pump = threading.Thread(target=_pass_on, args=(client, server))
                pump.start()
                _pass_on(server, client, rate)
                pump.join()

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Proxy(("127.0.0.1", 0), Connection) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()


def _pass_on(source: socket.socket, sink: socket.socket, rate: float = 0.0) -> None:
    """Pass on what comes until either side ends; not faster than the rate, if any."""
    due = time.monotonic()
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            if rate:
                now = time.monotonic()
                due = max(due, now - _CATCH_UP_S) + len(piece) / rate
                time.sleep(max(0.0, due - now))
            sink.sendall(piece)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def namespace() -> Iterator[list[str]]:
    """Make a network namespace joined to this host by a link; yield a command prefix.

    Needs root and Debian's iproute2.
    """

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    inside = ["ip", "netns", "exec", NAMESPACE]
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "link", "add", "vo3a", "type", "veth", "peer", "name", "vo3b")
        run("ip", "link", "set", "vo3b", "netns", NAMESPACE)
        run("ip", "addr", "add", f"{LINK[0]}/24", "dev", "vo3a")
        run("ip", "link", "set", "vo3a", "up")
        run(*inside, "ip", "addr", "add", f"{LINK[1]}/24", "dev", "vo3b")
        run(*inside, "ip", "link", "set", "vo3b", "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        yield inside
    finally:
        subprocess.run(["ip", "link", "del", "vo3a"], check=False, capture_output=True)
        run("ip", "netns", "del", NAMESPACE)


def shape(inside: Sequence[str], gigabits: float) -> None:
    """Limit what leaves the namespace to a rate, as a link of that speed does."""
    subprocess.run(
        [*inside, "tc", "qdisc", "replace", "dev", "vo3b", "root", "tbf"]
        + ["rate", f"{int(gigabits * 1000)}mbit", "burst", "2mb", "latency", "20ms"],
        check=True,
        capture_output=True,
    )
