"""Download one large file by the SDK, by Hugging Face's client and by MLflow's.

    python benchmarks/peers.py --size 512 --repeats 5 --home /dev/shm

Each from a server of its own kind on bare loopback: the SDK from the gateway, which
checks each leaf; Hugging Face's client, on its plain HTTP path, from nginx with the
hub's headers; MLflow's from its own server's artifact proxy. The peers are installed
into ``.venv/peers``. Then each is given a file of which one byte has changed, and one
that breaks off half-way, and it is told what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import transfer
from harness import MIB, Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = harness.REPOSITORY / ".venv" / "peers"
PINNED = ("huggingface_hub==2.4.0", "mlflow==3.17.2")
COMMIT = "1" * 40
PATIENCE_S = 60
"""How long to wait for what comes of a download that goes wrong."""
HUB_PATH = "bench/model/resolve/main/m.tflite"
SDK = """
import sys, time
url, client_id, secret, cache, name = sys.argv[1:]
from vision_o3 import VisionO3Client
with VisionO3Client(url, credentials=(client_id, secret), cache_dir=cache) as client:
    started = time.perf_counter()
    client.download_model(name)
    print(time.perf_counter() - started)
"""
HUGGING_FACE = """
import sys, time
from huggingface_hub import hf_hub_download
started = time.perf_counter()
hf_hub_download("bench/model", "m.tflite", cache_dir=sys.argv[1])
print(time.perf_counter() - started)
"""
MLFLOW = """
import sys, time
import mlflow.artifacts
started = time.perf_counter()
mlflow.artifacts.download_artifacts("mlflow-artifacts:/m.tflite", dst_path=sys.argv[1])
print(time.perf_counter() - started)
"""


def install() -> Path:
    """Return the interpreter that has the peers; installs them the first time."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        venv.create(PEERS, with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", *PINNED],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return python


class Client:
    """A client that downloads the file to a folder that is emptied before."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self._command, self._folder = command, folder
        self._environment = {**os.environ, **environment}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as where it is used

    def _start(
        self, *, check: bool, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return subprocess.run(
            self._command,
            env=self._environment,
            check=check,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def download(self) -> float:
        """Return the seconds of the download alone, as the client's process says."""
        return float(self._start(check=True).stdout)

    def whole(self) -> float:
        """Return the seconds of the whole command."""
        started = time.perf_counter()
        self._start(check=True)
        return time.perf_counter() - started

    def outcome(self, right: Path) -> str:
        """Return what comes of a download that goes wrong."""
        try:
            done = self._start(check=False, timeout_s=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"no end within {PATIENCE_S} s"
        if done.returncode:
            left = any(path.is_file() for path in self._folder.rglob("m.tflite"))
            what = "refused, a part left in its place" if left else "refused"
            return f"{what}: {done.stderr.strip().splitlines()[-1]}"
        digests = [
            digest(path)
            for path in self._folder.rglob("*")
            if path.is_file() and path.stat().st_size >= MIB
        ]
        if digest(right) in digests:
            return "the right bytes"
        return "wrong bytes, and no error"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def mlflow_server(python: Path, home: Path, artifacts: Path) -> Iterator[str]:
    port = harness.free_port()
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (home / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            [str(python), "-m", "mlflow", *command]
            + ["--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
            + ["--artifacts-destination", str(artifacts), "--serve-artifacts"],
            stdout=log,
            stderr=log,
            cwd=home,
            env={
                **os.environ,
                "PATH": f"{python.parent}:{os.environ['PATH']}",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
    try:
        url = f"http://127.0.0.1:{port}"
        harness.wait_for(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def breaking_off(path: Path, headers: dict[str, str]) -> Iterator[str]:
    """Serve a file at every path; each answer ends in its middle. No ranges."""
    size = path.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            for name, text in {**headers, "Content-Length": str(size)}.items():
                self.send_header(name, text)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with path.open("rb") as file:
                self.wfile.write(file.read(size // 2))
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def change_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def bench(home: Path, size: int, repeats: int) -> None:
    python = install()
    hub, store, folder = home / "hub", home / "mlflow", home / "downloaded"
    served = hub / HUB_PATH
    served.parent.mkdir(parents=True)
    store.mkdir()
    original = home / "m.tflite"
    transfer.make_file(original, size)
    os.link(original, store / "m.tflite")
    os.link(original, served)
    headers = {
        "ETag": f'"{digest(original)}"',
        "X-Repo-Commit": COMMIT,
        "X-Linked-Size": str(size),
    }

    def hugging_face(url: str) -> Client:
        return Client(
            [str(python), "-c", HUGGING_FACE, str(folder)],
            folder,
            HF_ENDPOINT=url,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )

    def mlflow(url: str) -> Client:
        return Client(
            [str(python), "-c", MLFLOW, str(folder)],
            folder,
            MLFLOW_TRACKING_URI=url,
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        )

    with (
        harness.gateway(home) as gateway,
        harness.nginx(home / "nginx", hub, headers) as hub_url,
        mlflow_server(python, home, store) as mlflow_url,
    ):
        transfer.publish(gateway, original, "m")
        clients = {
            "SDK": Client(
                [sys.executable, "-c", SDK, gateway.url, gateway.client_id]
                + [gateway.client_secret, str(folder), "m"],
                folder,
                PYTHONPATH=str(harness.REPOSITORY / "src"),
            ),
            PINNED[0]: hugging_face(hub_url),
            PINNED[1]: mlflow(mlflow_url),
        }
        compare("The download", clients, Client.download, size, repeats)
        compare("The whole command", clients, Client.whole, size, repeats)
        right = home / "right"
        shutil.copyfile(original, right)
        change_a_byte(original)  # and its other names: nginx's and MLflow's
        for stored in (home / "objects" / "models" / "m").glob("v*.tflite"):
            change_a_byte(stored)
        print("\n### One byte changed where it is served\n")
        for name, client in clients.items():
            print(f"- {name}: {client.outcome(right)}")
    print("\n### The server breaks off half-way, each time\n")
    with breaking_off(right, headers) as url:
        for name, client in (
            (PINNED[0], hugging_face(url)),
            (PINNED[1], mlflow(url)),
        ):
            print(f"- {name}: {client.outcome(right)}")


def compare(
    title: str,
    clients: dict[str, Client],
    run: Callable[[Client], float],
    size: int,
    repeats: int,
) -> None:
    harness.compare(
        title,
        [Contender(name, partial(run, client)) for name, client in clients.items()],
        size=size,
        repeats=repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="MiB (default 512)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--home", default="/dev/shm", help="where files lie")  # noqa: S108 - memory-backed on purpose
    options = parser.parse_args()
    harness.describe_machine()
    with tempfile.TemporaryDirectory(dir=options.home) as directory:
        bench(Path(directory), options.size * MIB, options.repeats)


if __name__ == "__main__":
    main()
