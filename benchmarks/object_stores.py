"""The gateway on S3 servers, against plain S3 clients and itself on a directory.

    python benchmarks/object_stores.py                          # everything
    python benchmarks/object_stores.py download store --servers swift --size 256
    python benchmarks/object_stores.py many flight --servers localbucket

Parts: `download` (one file through the gateway against a streaming get by boto3 and
obstore), `store` (an upload's store stage against their multipart put),
`cache` (the hot cache, warm, against a directory), `many` (100 and 1,000 downloads at
once, metadata requests beside them, memory), `flight` (200 ask for one new version:
what the store is asked for). Servers: `swift` (Debian's OpenStack Swift), `localbucket`
and `moto` (`requirements/servers.txt` in `.venv/servers`, which has boto3 too).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import harness
from botocore.exceptions import ClientError
from harness import MIB, REPOSITORY, Contender
from transfer import make_file, publish

sys.path.insert(0, str(REPOSITORY))

from tests.fakes.s3_servers import SERVERS, S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOAD = Path(__file__).parent / "load.py"
SERVERS_PYTHON = REPOSITORY / ".venv" / "servers" / "bin" / "python"
NAME = "m"
OPEN_FILES = 20_000

# Each client is a process that takes commands, so that its start is not measured. A
# line is the words of a command; the answer is the seconds it took.
BOTO3 = """
import sys, time, boto3
from botocore.config import Config
endpoint, region, key_id, secret, bucket = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region,
    aws_access_key_id=key_id, aws_secret_access_key=secret,
    config=Config(request_checksum_calculation="when_required", proxies={},
        response_checksum_validation="when_required", s3={"addressing_style": "path"}))
for line in sys.stdin:
    command, *words = line.split()
    started = time.perf_counter()
    if command == "get":
        body = s3.get_object(Bucket=bucket, Key=words[0])["Body"]
        while body.read(1 << 20): pass
    else:
        s3.upload_file(words[1], bucket, words[0])
    print(time.perf_counter() - started, flush=True)
"""
OBSTORE = """
import sys, time, obstore
from pathlib import Path
endpoint, region, key_id, secret, bucket = sys.argv[1:]
store = obstore.store.S3Store(bucket, endpoint=endpoint, region=region,
    access_key_id=key_id, secret_access_key=secret, virtual_hosted_style_request=False,
    client_options={"allow_http": True, "timeout": "600s"})
for line in sys.stdin:
    command, *words = line.split()
    started = time.perf_counter()
    if command == "get":
        for piece in store.get(words[0]).stream(min_chunk_size=1 << 20): pass
    else:
        obstore.put(store, words[0], Path(words[1]))
    print(time.perf_counter() - started, flush=True)
"""
S3_STORE = """
import sys, time
from pathlib import Path
from vision_o3.storage.s3 import S3Options, S3Store
endpoint, region, key_id, secret, bucket = sys.argv[1:]
store = S3Store(bucket, "", S3Options(endpoint, region, key_id, secret))
for line in sys.stdin:
    command, *words = line.split()
    started = time.perf_counter()
    store.put_file(words[0], Path(words[1]))
    print(time.perf_counter() - started, flush=True)
"""
GATEWAY = """
import http.client, sys, time
host, port = sys.argv[1:]
buffer = bytearray(1 << 20)
for line in sys.stdin:
    path, token = line.split()
    started = time.perf_counter()
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", path, headers={"Authorization": "Bearer " + token})
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    left = int(answer.headers["Content-Length"])
    while left:
        size = answer.readinto(buffer)
        if not size: sys.exit("The answer is too short.")
        left -= size
    connection.close()
    print(time.perf_counter() - started, flush=True)
"""


class Client:
    """A process that does one thing at a time and says how long it took."""

    def __init__(self, python: Path | str, program: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [str(python), "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, *words: object) -> float:
        """Return the seconds that a command took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def s3_client(
    python: Path | str, program: str, server: S3Server, bucket: str
) -> Client:
    return Client(
        python,
        program,
        server.endpoint,
        server.region,
        server.access_key,
        server.secret_key,
        bucket,
    )


def gateway_client(gateway: harness.Gateway) -> Client:
    parts = urlsplit(gateway.url)
    return Client(sys.executable, GATEWAY, str(parts.hostname), str(parts.port))


@contextlib.contextmanager
def gateway_on(
    server: S3Server,
    bucket: str,
    home: Path,
    *,
    endpoint: str = "",
    cache: Path | None = None,
) -> Iterator[harness.Gateway]:
    """Run a gateway on a server's bucket, with a hot cache if told where."""
    home.mkdir(exist_ok=True)
    settings = {
        "VISION_O3_STORE": f"s3://{bucket}/bench",
        "VISION_O3_S3_ENDPOINT": endpoint or server.endpoint,
        "VISION_O3_S3_REGION": server.region,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "VISION_O3_SPOOL_DIR": str(home / "spool"),
    }
    if cache is not None:
        settings["VISION_O3_CACHE_DIR"] = str(cache)
    else:
        settings["VISION_O3_CACHE_BYTES"] = "0"
    with harness.gateway(home, settings=settings) as gateway:
        yield gateway


def path_of(name: str) -> str:
    return f"/models/{name}/download"


def artifact_key(server: S3Server, bucket: str) -> str:
    """Return where the bucket holds the one artifact that was published."""
    (key,) = (k for k in server.keys(bucket) if k.endswith(f"/{NAME}/v1.tflite"))
    return key


def make_bucket(server: S3Server) -> str:
    """Make a bucket; a server that has just started may want to be asked again."""
    for _ in range(10):
        with contextlib.suppress(ClientError):
            return server.make_bucket()
        time.sleep(1)
    return server.make_bucket()


def empty(server: S3Server, bucket: str) -> None:
    for key in server.keys(bucket):
        server.client.delete_object(Bucket=bucket, Key=key)


def bench_download(server: S3Server, home: Path, size: int, repeats: int) -> None:
    bucket = make_bucket(server)
    path = home / "m.tflite"
    make_file(path, size)
    with (
        gateway_on(server, bucket, home / "gateway") as gateway,
        s3_client(SERVERS_PYTHON, BOTO3, server, bucket) as boto3,
        s3_client(sys.executable, OBSTORE, server, bucket) as obstore,
        gateway_client(gateway) as ours,
    ):
        publish(gateway, path, NAME)
        key = artifact_key(server, bucket)
        token = gateway.token()
        harness.compare(
            f"Download from {server.name}",
            [
                Contender("boto3, streaming get", lambda: boto3.ask("get", key)),
                Contender("obstore, streaming get", lambda: obstore.ask("get", key)),
                Contender(
                    "through the gateway, verified",
                    lambda: ours.ask(path_of(NAME), token),
                ),
            ],
            size=size,
            repeats=repeats,
        )
    empty(server, bucket)


def bench_store(server: S3Server, home: Path, size: int, repeats: int) -> None:
    bucket = make_bucket(server)
    path = home / "m.tflite"
    make_file(path, size)
    count = 0

    def put(client: Client) -> float:
        nonlocal count
        count += 1
        key = f"put/{count}"
        taken = client.ask("put", key, path)
        found = server.client.head_object(Bucket=bucket, Key=key)
        assert found["ContentLength"] == size
        empty(server, bucket)
        return taken

    with (
        s3_client(SERVERS_PYTHON, BOTO3, server, bucket) as boto3,
        s3_client(sys.executable, OBSTORE, server, bucket) as obstore,
        s3_client(sys.executable, S3_STORE, server, bucket) as ours,
    ):
        harness.compare(
            f"Store stage of an upload, to {server.name}",
            [
                Contender("boto3, upload_file", lambda: put(boto3)),
                Contender("obstore, put", lambda: put(obstore)),
                Contender("S3Store.put_file", lambda: put(ours)),
            ],
            size=size,
            repeats=repeats,
        )


def bench_cache(server: S3Server, home: Path, size: int, repeats: int) -> None:
    bucket = make_bucket(server)
    path = home / "m.tflite"
    make_file(path, size)
    (home / "local").mkdir()
    with (
        harness.gateway(home / "local") as local,
        gateway_on(server, bucket, home / "gateway", cache=home / "cache") as cached,
        gateway_client(local) as from_local,
        gateway_client(cached) as from_cached,
    ):
        publish(local, path, NAME)
        publish(cached, path, NAME)
        tokens = local.token(), cached.token()
        harness.compare(
            f"Hot cache before {server.name}, warm",
            [
                Contender(
                    "gateway on a directory",
                    lambda: from_local.ask(path_of(NAME), tokens[0]),
                ),
                Contender(
                    "gateway with its hot cache",
                    lambda: from_cached.ask(path_of(NAME), tokens[1]),
                ),
            ],
            size=size,
            repeats=repeats,
        )
    empty(server, bucket)


@dataclass(frozen=True)
class Load:
    """So many downloads at once; ``stop_after`` bytes of each, all if 0."""

    clients: int
    name: str
    size: int
    stop_after: int = 0

    def __str__(self) -> str:
        part = f"{self.stop_after // MIB} MiB of " if self.stop_after else ""
        return f"{self.clients:,} × {part}{self.size // MIB} MiB"


def quantile(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def start_load(
    gateway: harness.Gateway, *words: str
) -> tuple[subprocess.Popen[str], str]:
    """Start load.py against a gateway; return it and the token for its input."""
    parts = urlsplit(gateway.url)
    process = subprocess.Popen(
        [sys.executable, str(LOAD), str(parts.hostname), str(parts.port), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, gateway.token() + "\n"


def measure_load(gateway: harness.Gateway, what: str, load: Load) -> None:
    """Print a row: what became of a load, and of metadata requests beside it."""
    with contextlib.suppress(OSError):  # as far as the kernel lets us
        Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")
    probe, token = start_load(gateway, f"/models/{load.name}", "--probe")
    assert probe.stdin is not None
    probe.stdin.write(token)
    probe.stdin.flush()
    time.sleep(0.5)
    client, token = start_load(
        gateway,
        path_of(load.name),
        *("--clients", str(load.clients), "--stop-after", str(load.stop_after)),
    )
    seen: dict[str, Any] = json.loads(client.communicate(token)[0])
    asked: dict[str, Any] = json.loads(probe.communicate()[0])
    first, metadata = seen["first_s"], asked["taken_s"]
    failed = load.clients - seen["right"]
    print(
        f"| {what} | {load} | {failed} | "
        f"{statistics.median(first or [0]) * 1000:,.0f} / "
        f"{quantile(first, 1) * 1000:,.0f} | "
        f"{quantile(metadata, 0.5) * 1000:,.0f} / "
        f"{quantile(metadata, 0.99) * 1000:,.0f} of {len(metadata)}, "
        f"{asked['failures']} failed | "
        f"{seen['received'] / seen['took_s'] / 1e6:,.0f} | "
        f"{harness.peak_memory(gateway.process.pid) / MIB:,.0f} | "
        f"{seen['took_s']:.1f} / {seen['own_cpu_s']:.1f} |"
    )
    for failure in seen["failures"]:
        print(f"| | failure: {failure} | | | | | | |")
    sys.stdout.flush()


def bench_many(server: S3Server, home: Path, size: int, small: int) -> None:
    bucket = make_bucket(server)
    paths = {"large": home / "large.tflite", "small": home / "small.tflite"}
    make_file(paths["large"], size)
    make_file(paths["small"], small, seed=2)
    loads = [
        Load(100, "large", size),
        Load(1000, "small", small),
        Load(1000, "large", size, min(small, size)),
    ]
    print(f"\n### Many downloads at once, {server.name}\n")
    print(
        "| gateway on | load | failed | first byte, median / last ms "
        "| metadata, median / p99 ms | MB/s | peak MiB | s / client's CPU s |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    (home / "local").mkdir()
    gateways: dict[str, contextlib.AbstractContextManager[harness.Gateway]] = {
        "a directory": harness.gateway(home / "local"),
        f"{server.name}, cache warm": gateway_on(
            server, bucket, home / "cached", cache=home / "cache"
        ),
    }
    for what, context in gateways.items():
        with context as gateway:
            for name, path in paths.items():
                publish(gateway, path, name)
                subprocess.run(  # fills the cache
                    ["curl", "-sSf", "-o", "/dev/null", "-H"]
                    + [f"Authorization: Bearer {gateway.token()}"]
                    + [gateway.url + path_of(name)],
                    check=True,
                )
            for load in loads:
                measure_load(gateway, what, load)
    empty(server, bucket)
    with gateway_on(server, bucket, home / "bare") as gateway:
        for name, path in paths.items():
            publish(gateway, path, name)
        for load in loads:
            measure_load(gateway, f"{server.name}, no cache", load)
    empty(server, bucket)


class CountingProxy:
    """Passes connections through by ``splice``; counts what the server answers."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answered = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, target, counted in (
                (client, server, False),
                (server, client, True),
            ):
                threading.Thread(
                    target=self._pass, args=(source, target, counted), daemon=True
                ).start()

    def _pass(self, source: socket.socket, target: socket.socket, count: bool) -> None:  # noqa: FBT001 - of our own thread
        reader, writer = os.pipe()
        try:
            with contextlib.suppress(OSError):
                while size := os.splice(source.fileno(), writer, MIB):
                    if count:
                        with self._lock:
                            self.answered += size
                    while size:
                        size -= os.splice(reader, target.fileno(), size)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        finally:
            os.close(reader)
            os.close(writer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def bench_flight(server: S3Server, home: Path, size: int, clients: int) -> None:
    bucket = make_bucket(server)
    path = home / "m.tflite"
    make_file(path, size)
    with gateway_on(server, bucket, home / "gateway") as publisher:
        publish(publisher, path, NAME)
    proxy = CountingProxy(server.endpoint)
    # Another gateway on the same database: nothing of the version is in its cache.
    with gateway_on(
        server,
        bucket,
        home / "gateway",
        endpoint=proxy.endpoint,
        cache=home / "cache",
    ) as gateway:
        before = proxy.answered
        client, token = start_load(gateway, path_of(NAME), "--clients", str(clients))
        seen = json.loads(client.communicate(token)[0])
        served = proxy.answered - before
        peak = harness.peak_memory(gateway.process.pid)
    proxy.close()
    empty(server, bucket)
    first = seen["first_s"]
    print(f"\n### {clients} clients ask for one new version, {server.name}\n")
    print(
        f"{size / MIB:.0f} MiB: {seen['right']} right, failures {seen['failures']}; "
        f"the store served {served / MIB:.1f} MiB, {served / size:.3f} × the size; "
        f"{seen['took_s']:.1f} s, first byte {quantile(first, 0.5):.2f} s (median), "
        f"{quantile(first, 1):.2f} s (last); peak memory {peak / MIB:.0f} MiB"
    )


@contextlib.contextmanager
def directory_under(home: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=home))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run_part(
    part: str, server: S3Server, home: Path, options: Mapping[str, int]
) -> None:
    size, repeats = options["size"] * MIB, options["repeats"]
    if part == "download":
        bench_download(server, home, size, repeats)
    elif part == "store":
        bench_store(server, home, size, repeats)
    elif part == "cache":
        bench_cache(server, home, size, repeats)
    elif part == "many":
        bench_many(server, home, size, options["small"] * MIB)
    else:
        bench_flight(server, home, size, options["clients"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["download", "store", "cache", "many", "flight"]
    parser.add_argument("parts", nargs="*", help="default: all", metavar="PART")
    parser.add_argument("--servers", default="swift,localbucket", help="with commas")
    parser.add_argument("--size", type=int, default=256, help="MiB (default 256)")
    parser.add_argument("--small", type=int, default=8, help="MiB (default 8)")
    parser.add_argument("--clients", type=int, default=200, help="of `flight`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--home", default="/dev/shm", help="where files lie")  # noqa: S108 - memory-backed on purpose
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}; there are {parts}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    harness.describe_machine()
    for name in options.servers.split(","):
        with (
            directory_under(options.home) as directory,
            SERVERS[name](directory) as server,
        ):
            for part in options.parts or parts:
                with directory_under(options.home) as home:
                    run_part(part, server, home, vars(options))


if __name__ == "__main__":
    main()
