"""Real S3 servers on loopback, each a process of its own, for tests and benchmarks.

- ``swift``: OpenStack Swift from Debian's packages, a store that is run in production.
  It checks signatures, and refuses conditional writes.
- ``moto``: the complete API in memory, conditional writes and locks included.
- ``localbucket``: plain folders, conditional writes, and fast.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config

_SERVERS = Path(__file__).parents[2] / ".venv" / "servers" / "bin"
_PATIENCE_S = 60.0
_CHANCES = 3


@dataclass(frozen=True)
class S3Server:
    """Where a server is and how to sign for it."""

    name: str
    endpoint: str
    access_key: str = "test:tester"
    secret_key: str = field(default="testing", repr=False)
    region: str = "us-east-1"

    def make_bucket(self, **options: Any) -> str:
        """Make an empty bucket of a new name and return the name."""
        name = f"vo3-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name, **options)
        return name

    @cached_property
    def client(self) -> Any:
        """A plain client, independent of the code under test."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={},
                max_pool_connections=32,
                s3={"addressing_style": "path"},
            ),
        )

    def keys(self, bucket: str) -> list[str]:
        """Return every key of a bucket as the server names it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def unfinished(self, bucket: str) -> list[str]:
        """Return the keys of the uploads that were begun and not ended."""
        listed = self.client.list_multipart_uploads(Bucket=bucket)
        return [upload["Key"] for upload in listed.get("Uploads", ())]


class ServerUnavailableError(Exception):
    """The server is not installed here."""


class _DidNotStartError(Exception):
    """The server ended, or did not listen: its port may have been taken meanwhile."""


@contextmanager
def running(name: str) -> Iterator[S3Server]:
    """Run a server (``swift``, ``moto``, ``localbucket``) while the body runs.

    Where it is not installed the test is skipped; with ``CI=true`` it fails.
    """
    with ExitStack() as stack:
        try:
            server = _start(name, stack)
        except ServerUnavailableError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield server
        server.client.close()


def _start(name: str, stack: ExitStack) -> S3Server:
    for chance in range(_CHANCES, 0, -1):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            return stack.enter_context(SERVERS[name](directory))
        except _DidNotStartError:
            if chance == 1:
                raise
    raise AssertionError


@contextmanager
def running_moto(directory: Path) -> Iterator[S3Server]:
    """Run ``moto``, which keeps all in memory and checks no signature."""
    port = free_ports(1)[0]
    program = _installed("moto_server")
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    with _program(command, port, directory) as wait_until_it_listens:
        wait_until_it_listens()
        yield S3Server("moto", f"http://127.0.0.1:{port}")


@contextmanager
def running_localbucket(directory: Path) -> Iterator[S3Server]:
    """Run ``localbucket``, which checks no signature."""
    port = free_ports(1)[0]
    (directory / "buckets").mkdir()
    program, buckets = _installed("localbucket"), directory / "buckets"
    command = [str(program), "--port", str(port), str(buckets)]
    with _program(command, port, directory) as wait_until_it_listens:
        wait_until_it_listens()
        yield S3Server("localbucket", f"http://127.0.0.1:{port}")


@contextmanager
def running_swift(directory: Path) -> Iterator[S3Server]:
    """Run one node of OpenStack Swift: an account, a container, an object and a proxy
    server, the last with the S3 API. As any user; nothing outside ``directory``.
    """
    builder = shutil.which("swift-ring-builder")
    if builder is None or not all(shutil.which(_swift(kind)) for kind in _SWIFT_KINDS):
        raise ServerUnavailableError(
            "OpenStack Swift is not installed (Debian: swift-proxy swift-account "
            "swift-container swift-object)."
        )
    ports = dict(zip(_SWIFT_KINDS, free_ports(len(_SWIFT_KINDS)), strict=True))
    (directory / "devices" / "d1").mkdir(parents=True)
    (directory / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = tests\nswift_hash_path_suffix = tests\n"
    )
    _make_rings(builder, directory, ports)
    with ExitStack() as stack:
        waits = [
            stack.enter_context(_swift_program(kind, ports[kind], directory))
            for kind in _SWIFT_BACKENDS
        ]
        # The proxy after them: it avoids for a minute who did not answer once.
        for wait_until_it_listens in waits:
            wait_until_it_listens()
        stack.enter_context(_swift_program("proxy", ports["proxy"], directory))()
        yield S3Server("swift", f"http://127.0.0.1:{ports['proxy']}")


SERVERS: dict[str, Callable[[Path], AbstractContextManager[S3Server]]] = {
    "swift": running_swift,
    "moto": running_moto,
    "localbucket": running_localbucket,
}

_SWIFT_BACKENDS = ("account", "container", "object")
_SWIFT_KINDS = (*_SWIFT_BACKENDS, "proxy")
_SWIFT_FILTERS = {
    "catch_errors": "",
    "cache": "memcache_servers = 127.0.0.1:1\n",  # none: it may be absent
    "listing_formats": "",
    "bulk": "",
    # Pages of a tenth of the usual size, so that few objects fill more than one.
    "s3api": "s3_acl = false\nlocation = us-east-1\nmax_bucket_listing = 100\n",
    "tempauth": "user_test_tester = testing .admin\n",
    "slo": "",
    "dlo": "",
    "versioned_writes": "allow_object_versioning = true\n",
    "symlink": "",
}
_SWIFT_EGGS = {"cache": "memcache"}


def _swift(kind: str) -> str:
    return f"swift-{kind}-server"


def _swift_program(
    kind: str, port: int, directory: Path
) -> AbstractContextManager[Callable[[], None]]:
    settings = directory / f"{kind}-server.conf"
    settings.write_text(_swift_settings(kind, port, directory))
    return _program([_swift(kind), settings], port, directory)


_MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder

for kind, port in (word.split("=") for word in sys.argv[2:]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port),
                     "device": "d1", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""


def _make_rings(builder: str, directory: Path, ports: dict[str, int]) -> None:
    """Write where each kind of server is, by the Python that Swift is installed for."""
    with Path(builder).open(encoding="utf-8") as script:
        python = script.readline().removeprefix("#!").split()[0]
    words = [f"{kind}={port}" for kind, port in ports.items() if kind != "proxy"]
    subprocess.run([python, "-c", _MAKE_RINGS, directory, *words], check=True)


def _swift_settings(kind: str, port: int, directory: Path) -> str:
    user = pwd.getpwuid(os.geteuid()).pw_name
    filters = _SWIFT_FILTERS if kind == "proxy" else {}
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = {user}\n"
        f"swift_dir = {directory}\ndevices = {directory / 'devices'}\n"
        "mount_check = false\nworkers = 0\nlog_level = WARNING\n"
        f"recon_cache_path = {directory}\n"
    )
    application = f"[app:{kind}-server]\nuse = egg:swift#{kind}\n"
    if kind == "proxy":
        application += "account_autocreate = true\n"
    sections = [
        common,
        f"[pipeline:main]\npipeline = {' '.join(filters)} {kind}-server\n",
        application,
    ]
    sections += [
        f"[filter:{name}]\nuse = egg:swift#{_SWIFT_EGGS.get(name, name)}\n{extra}"
        for name, extra in filters.items()
    ]
    return "\n".join(sections)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _installed(program: str) -> Path:
    path = _SERVERS / program
    if not path.exists():
        raise ServerUnavailableError(
            f"{program} is not installed: python3 -m venv .venv/servers and "
            "pip install -r requirements/servers.txt there."
        )
    return path


@contextmanager
def _program(
    command: Sequence[str | Path], port: int, directory: Path
) -> Iterator[Callable[[], None]]:
    """Run a program while the body runs; what is yielded waits until it listens."""
    path = directory / f"{port}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_until_it_listens() -> None:
        ends = time.monotonic() + _PATIENCE_S
        while not _is_open(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise _DidNotStartError(f"{command[0]}: {path.read_text()[-2000:]}")
            time.sleep(0.05)

    try:
        yield wait_until_it_listens
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
