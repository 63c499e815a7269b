"""Real gateway processes on loopback, for the tests of this folder."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest

from tests.fakes.s3_servers import S3Server

VISION_O3 = [sys.executable, "-m", "vision_o3"]
POSTGRES = os.environ.get(
    "VISION_O3_TEST_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/postgres"
)


@dataclass
class Site:
    """What gateways share: a database, a store, a key."""

    home: Path
    database_url: str
    extra: dict[str, str] = field(default_factory=dict)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "VISION_O3_DATABASE_URL": self.database_url,
            "VISION_O3_STORE": str(self.objects),
            "VISION_O3_JWT_SECRET": self.secret,
            "VISION_O3_MAX_REQUESTS_PER_MINUTE": "0",
            "VISION_O3_MAX_SIGN_INS_PER_MINUTE": "0",
            **self.extra,
        }

    @property
    def objects(self) -> Path:
        return self.home / "objects"

    def keys(self) -> set[str]:
        return {
            str(path.relative_to(self.objects))
            for path in self.objects.rglob("*")
            if path.is_file() and path.relative_to(self.objects).parts[0][0] != "."
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*VISION_O3, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )

    def add_user(self, name: str, *scopes: str) -> tuple[str, str]:
        arguments = [word for scope in scopes for word in ("--scope", scope)]
        added = self.run("user", "add", name, *arguments, "--json")
        return name, json.loads(added.stdout)["secret"]


@dataclass
class S3Site(Site):
    """A site whose store is a bucket; files from 5 MiB, S3's least, go in parts."""

    server: S3Server = field(kw_only=True)
    bucket: str = field(kw_only=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "VISION_O3_STORE": f"s3://{self.bucket}/registry",
            "VISION_O3_SPOOL_DIR": str(self.home / "spool"),
            "VISION_O3_CACHE_DIR": str(self.home / "cache"),
            "VISION_O3_S3_ENDPOINT": self.server.endpoint,
            "VISION_O3_S3_REGION": self.server.region,
            "VISION_O3_S3_MULTIPART_BYTES": str(5 << 20),
            "VISION_O3_S3_PART_BYTES": str(5 << 20),
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            **self.extra,
        }

    def keys(self) -> set[str]:
        """Return what lies in the bucket, asked for past our own code."""
        return {key.removeprefix("registry/") for key in self.server.keys(self.bucket)}


class Process(Protocol):
    """What is used of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def terminate(self) -> None: ...
    def send_signal(self, sig: int) -> None: ...
    def wait(self, timeout: float = ...) -> int: ...


@dataclass
class RunningGateway:
    url: str
    process: Process
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(site: Site, port: int | None = None) -> RunningGateway:
    """Start a gateway and wait until it is ready."""
    port = port or free_port()
    log = site.home / f"gateway-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*VISION_O3, "serve", "--migrate", "--port", str(port)],
            env=site.environment,
            stdout=output,
            stderr=output,
        )
    gateway = RunningGateway(f"http://127.0.0.1:{port}", process, log)
    wait_until_ready(gateway)
    return gateway


def wait_until_ready(gateway: RunningGateway) -> None:
    """Wait until a gateway says that it is ready; if it never does, end it."""
    for _ in range(1200):
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{gateway.url}/health/ready", timeout=2).close()
            return
        if gateway.process.poll() is not None:
            break
        time.sleep(0.025)
    gateway.kill()
    raise AssertionError(f"The gateway did not start:\n{gateway.log.read_text()}")


@contextmanager
def running(site: Site, count: int = 1) -> Iterator[list[RunningGateway]]:
    gateways: list[RunningGateway] = []
    try:
        gateways.extend(start(site) for _ in range(count))
        yield gateways
    finally:
        for gateway in gateways:
            gateway.process.terminate()
        for gateway in gateways:
            gateway.process.wait(timeout=40)


@contextmanager
def postgres_database() -> Iterator[str]:
    """Make a database of its own on the test server, dropped at the end."""
    try:
        server = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"PostgreSQL is not there ({error}).")
    name = f"vision_o3_{uuid.uuid4().hex[:12]}"
    with server:
        server.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{POSTGRES.rsplit('/', 1)[0]}/{name}"
        finally:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def get_json(url: str, token: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def get_token(url: str, credentials: tuple[str, str]) -> str:
    form = (
        f"grant_type=client_credentials&client_id={credentials[0]}"
        f"&client_secret={credentials[1]}"
    )
    with urllib.request.urlopen(
        f"{url}/auth/token", data=form.encode(), timeout=30
    ) as answer:
        token: str = json.load(answer)["access_token"]
        return token
