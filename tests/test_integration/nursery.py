"""Gateways forked off a process that has loaded their code, and so ready sooner.

Each is a process of its own all the same, with its own memory, connections and threads,
and runs what ``vision-o3 serve`` runs. As a program this module is the process that
forks: it reads one JSON document a line, what to start, and answers each with an id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.test_integration.gateways import RunningGateway, Site, wait_until_ready

REPOSITORY = Path(__file__).parents[2]


class ForkedProcess:
    """A child of the nursery, with the methods of ``Popen`` that tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return ``None`` while it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return -1
        return None

    def send_signal(self, sig: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 60) -> int:
        ends = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired("gateway", timeout)
            time.sleep(0.002)
        return -1


class Nursery:
    """Forks gateways; one at a time. Use it as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.test_integration.nursery"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def start(self, site: Site, port: int) -> RunningGateway:
        """Start a gateway and wait until it is ready."""
        log = site.home / f"gateway-{port}.log"
        order = {"environment": site.environment, "port": port, "log": str(log)}
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("The nursery has no pipes.")
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        process = ForkedProcess(int(self._process.stdout.readline()))
        gateway = RunningGateway(f"http://127.0.0.1:{port}", process, log)
        wait_until_ready(gateway)
        return gateway


def main() -> None:
    """Load all that a gateway needs, then fork one for each line of the input."""
    import botocore.session  # noqa: F401, PLC0415 - loaded late by a gateway
    import uvloop  # noqa: F401, PLC0415

    import vision_o3.__main__  # noqa: PLC0415
    import vision_o3.gateway.commands  # noqa: F401, PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    for line in sys.stdin.buffer:
        pid = os.fork()
        if not pid:
            _be_gateway(json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _be_gateway(order: dict[str, Any]) -> None:
    from vision_o3.__main__ import main as vision_o3  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in (
        (os.open(os.devnull, os.O_RDONLY), 0),
        (log, 1),
        (log, 2),
    ):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    status = 1
    try:
        status = vision_o3(["serve", "--migrate", "--port", str(order["port"])])
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
