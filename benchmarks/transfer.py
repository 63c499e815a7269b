"""Upload and download of one large file, against curl, nginx and FastAPI's own form.

    python benchmarks/transfer.py                       # everything
    python benchmarks/transfer.py download upload       # parts
    python benchmarks/transfer.py --size 512 --repeats 5 --home /dev/shm

Parts: `download` (gateway against nginx), `upload` (gateway against `UploadFile`
written to disk, and sha256 alone), `sdk` (verified download against `curl -o` and
`urllib`, on bare loopback and through links of 5, 1 and 0.1 Gbit/s; root and iproute2
needed for the links), `connections` (1, 2, 4, 8 of them), `throttled` (10 MB/s a
connection), `cached` (what is there already), `memory` (up and down, peak memory of
both sides; `--python` adds interpreters).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness import MIB, Contender

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fakes.model_files import tflite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

THROTTLE = 10e6
"""Bytes a second on each connection, as object stores limit them."""
ADDRESS_SPACE_KIB = 256 << 10
LIMITED = ("bash", "-c", f'ulimit -v {ADDRESS_SPACE_KIB}; exec "$@"', "-")
SDK_DOWNLOAD = """
import json, sys, time
url, client_id, secret, cache, name, connections = sys.argv[1:]
from vision_o3 import VisionO3Client
with VisionO3Client(
    url, credentials=(client_id, secret), cache_dir=cache, connections=int(connections)
) as client:
    client.get_model_info(name)
    started = time.perf_counter()
    client.download_model(name)
    taken = time.perf_counter() - started
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
    again = []
    for verify in (True, False):
        started = time.perf_counter()
        client.download_model(name, verify=verify)
        again.append(time.perf_counter() - started)
print(json.dumps({
    "taken": taken, "verified": again[0], "found": again[1], "peak": int(peak) * 1024
}))
"""
URLLIB_DOWNLOAD = """
import shutil, sys, time
from urllib.request import Request, urlopen
url, token, target = sys.argv[1:]
request = Request(url, headers={"Authorization": "Bearer " + token})
started = time.perf_counter()
with urlopen(request) as answer, open(target, "wb") as file:
    shutil.copyfileobj(answer, file)
print(time.perf_counter() - started)
"""
OWN_PEAK = """
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024)
"""
SDK_UPLOAD = """
import json, sys, time
url, client_id, secret, path, name, sent = sys.argv[1:]
from vision_o3 import VisionO3Client
from vision_o3.sdk import upload
if sent == "whole":
    upload.PART_SIZE = 1 << 60
with VisionO3Client(url, credentials=(client_id, secret)) as client:
    client.sign_in()
    started = time.perf_counter()
    client.upload_model(path, name)
    taken = time.perf_counter() - started
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(json.dumps({"taken": taken, "peak": int(peak) * 1024}))
"""
FASTAPI_FORM = """
import shutil, sys, uvicorn
from fastapi import FastAPI, Form, UploadFile
app = FastAPI()
@app.post("/models")
def upload(file: UploadFile, name: str = Form()):
    with open(sys.argv[1], "wb") as target:
        shutil.copyfileobj(file.file, target, 1 << 20)
    return {}
@app.get("/health")
def health(): return {}
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


def make_file(path: Path, size: int, seed: int = 1) -> None:
    """Write a TFLite model without a layer, and what follows it: random bytes."""
    randomness = random.Random(seed)
    with path.open("wb") as file:
        file.write(tflite(seed))
        left = size - file.tell()
        block = randomness.randbytes(min(left, 64 * MIB))
        while left > 0:
            left -= file.write(block[:left])


def curl(*arguments: str) -> float:
    return harness.timed(["curl", "-sS", "--fail", *arguments])


def publish(gateway: harness.Gateway, path: Path, name: str) -> None:
    curl(
        "-H", f"Authorization: Bearer {gateway.token()}",
        "-F", f"name={name}", "-F", f"file=@{path}", f"{gateway.url}/models",
    )  # fmt: skip


def sdk_download(
    gateway: harness.Gateway,
    home: Path,
    name: str,
    *,
    connections: int = 4,
    python: Sequence[str] = (sys.executable,),
) -> dict[str, float]:
    cache = home / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    done = subprocess.run(
        [*python, "-c", SDK_DOWNLOAD, gateway.url, gateway.client_id]
        + [gateway.client_secret, str(cache), name, str(connections)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(harness.REPOSITORY / "src")},
    )
    shutil.rmtree(cache)
    report: dict[str, float] = json.loads(done.stdout)
    return report


def urllib_download(gateway: harness.Gateway, target: Path, name: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", URLLIB_DOWNLOAD, f"{gateway.url}/models/{name}/download"]
        + [gateway.token(), str(target)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


def sdk_upload(
    gateway: harness.Gateway, path: Path, name: str, sent: str = "parts"
) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", SDK_UPLOAD, gateway.url, gateway.client_id]
        + [gateway.client_secret, str(path), name, sent],
        check=True,
        capture_output=True,
        text=True,
    )
    report: dict[str, float] = json.loads(done.stdout)
    return report


def bench_download(home: Path, size: int, repeats: int) -> None:
    static = home / "static"
    static.mkdir(exist_ok=True)
    make_file(static / "m.tflite", size)
    with harness.gateway(home) as gateway, harness.nginx(home / "nginx", static) as web:
        publish(gateway, static / "m.tflite", "m")
        bearer = f"Authorization: Bearer {gateway.token()}"
        target = str(home / "downloaded")
        url = f"{gateway.url}/models/m/download"
        harness.compare(
            "Download, one stream, to a file",
            [
                Contender(
                    "nginx (sendfile)",
                    lambda: curl("-o", target, f"{web}/m.tflite"),
                ),
                Contender(
                    "gateway, each leaf checked",
                    lambda: curl("-o", target, "-H", bearer, url),
                ),
            ],
            size=size,
            repeats=repeats,
        )


def bench_upload(home: Path, size: int, repeats: int) -> None:
    path = home / "m.tflite"
    make_file(path, size)
    count = 0
    # FastAPI's form writes twice, first to the temporary directory: here too, and where
    # that is by default.
    forms = {
        harness.free_port(): str(home),
        harness.free_port(): tempfile.gettempdir(),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FASTAPI_FORM, str(home / "form"), str(port)],
            env={"TMPDIR": temporary, "PATH": "/usr/bin:/bin"},
        )
        for port, temporary in forms.items()
    ]

    def sha256_alone() -> float:
        content = path.read_bytes()
        started = time.perf_counter()
        hashlib.sha256(content).digest()
        return time.perf_counter() - started

    try:
        with harness.gateway(home) as gateway:
            for port, process in zip(forms, processes, strict=True):
                harness.wait_for(f"http://127.0.0.1:{port}/health", process)
            bearer = f"Authorization: Bearer {gateway.token()}"

            def to_form(port: int) -> float:
                url = f"http://127.0.0.1:{port}/models"
                return curl("-F", "name=m", "-F", f"file=@{path}", url)

            def to_gateway(send: Callable[[str], float]) -> float:
                nonlocal count
                count += 1
                with path.open("r+b") as file:  # new content: nothing is stored already
                    file.seek(64)  # after the model
                    file.write(count.to_bytes(8, "little"))
                taken = send(f"m{count}")
                stored = home / "objects" / "models" / f"m{count}" / "v1.tflite"
                assert stored.stat().st_size == size
                stored.unlink()
                return taken

            def by_curl(name: str) -> float:
                return curl(
                    "-H", bearer, "-F", f"name={name}", "-F", f"file=@{path}",
                    f"{gateway.url}/models",
                )  # fmt: skip

            def by_sdk(sent: str, name: str) -> float:
                return sdk_upload(gateway, path, name, sent)["taken"]

            harness.compare(
                "Upload",
                [
                    Contender("sha256 alone, one core", sha256_alone),
                    Contender(
                        "gateway: hashed, inspected, stored",
                        functools.partial(to_gateway, by_curl),
                    ),
                    *(
                        Contender(
                            f"the same from the SDK, which hashes before; {how}",
                            functools.partial(
                                to_gateway, functools.partial(by_sdk, sent)
                            ),
                        )
                        for sent, how in (("whole", "one form"), ("parts", "in parts"))
                    ),
                    *(
                        Contender(
                            f"FastAPI UploadFile, through {where}",
                            functools.partial(to_form, port),
                        )
                        for port, where in zip(
                            forms, ("memory", "its default, /tmp"), strict=True
                        )
                    ),
                ],
                size=size,
                repeats=repeats,
            )
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def compare_sdk(
    title: str,
    gateway: harness.Gateway,
    home: Path,
    size: int,
    repeats: int,
    *,
    urllib_too: bool = True,
) -> None:
    target = home / "downloaded"
    url = f"{gateway.url}/models/m/download"

    def by_curl() -> float:
        bearer = f"Authorization: Bearer {gateway.token()}"
        return curl("-o", str(target), "-H", bearer, url)

    def by_urllib() -> float:
        return urllib_download(gateway, target, "m")

    contenders = [
        Contender("curl -o", by_curl),
        Contender("SDK, verified", lambda: sdk_download(gateway, home, "m")["taken"]),
    ]
    if urllib_too:
        contenders.append(Contender("Python's urllib, to a file", by_urllib))
    harness.compare(title, contenders, size=size, repeats=repeats)


def bench_sdk(
    home: Path, size: int, repeats: int, links: Sequence[float] = (0, 5, 1, 0.1)
) -> None:
    """Compare on links of so many Gbit/s; 0 is bare loopback.

    Below 1 Gbit/s a quarter of the size must do.
    """
    path = home / "m.tflite"
    make_file(path, size)
    if 0 in links:
        with harness.gateway(home) as gateway:
            publish(gateway, path, "m")
            compare_sdk("SDK, bare loopback", gateway, home, size, repeats)
    shaped = [link for link in links if link]
    if not shaped:
        return
    with (
        harness.namespace() as inside,
        harness.gateway(home, inside=inside, host=harness.LINK[1]) as gateway,
    ):
        publish(gateway, path, "m")
        published = size
        for gigabits in shaped:
            if gigabits < 1 and published == size:
                published = size // 4
                make_file(path, published, seed=2)
                publish(gateway, path, "m")
            harness.shape(inside, gigabits)
            title = f"SDK, {gigabits} Gbit/s"
            compare_sdk(title, gateway, home, published, repeats)


def compare_connections(
    title: str, gateway: harness.Gateway, home: Path, size: int, repeats: int
) -> None:
    harness.compare(
        title,
        [
            Contender(
                f"{connections} connections at most",
                lambda connections=connections: sdk_download(  # type: ignore[misc]
                    gateway, home, "m", connections=connections
                )["taken"],
            )
            for connections in (4, 1, 2, 8)
        ],
        size=size,
        repeats=repeats,
    )


def bench_connections(home: Path, size: int, repeats: int) -> None:
    path = home / "m.tflite"
    make_file(path, size)
    with harness.gateway(home) as gateway:
        publish(gateway, path, "m")
        compare_connections("SDK, bare loopback", gateway, home, size, repeats)
    with (
        harness.namespace() as inside,
        harness.gateway(home, inside=inside, host=harness.LINK[1]) as gateway,
    ):
        harness.shape(inside, 1)
        compare_connections("SDK, 1 Gbit/s", gateway, home, size, repeats)


def bench_throttled(home: Path, size: int, repeats: int) -> None:
    path = home / "m.tflite"
    make_file(path, size)
    with harness.gateway(home) as gateway:
        publish(gateway, path, "m")
        with harness.throttled(gateway.url, THROTTLE) as url:
            slow = dataclasses.replace(gateway, url=url)
            title = f"SDK, {THROTTLE / 1e6:.0f} MB/s a connection"
            compare_sdk(title, slow, home, size, repeats, urllib_too=False)


def bench_cached(home: Path, size: int, repeats: int) -> None:
    path = home / "m.tflite"
    make_file(path, size)
    with harness.gateway(home) as gateway:
        publish(gateway, path, "m")
        reports = [sdk_download(gateway, home, "m") for _ in range(repeats)]
    print(f"\n### download_model of what is cached ({size / MIB:,.0f} MiB)\n")
    print("| | median ms | min–max ms |\n|---|--:|--:|")
    for key, name in (("verified", "verify=True"), ("found", "verify=False")):
        taken = [report[key] * 1e3 for report in reports]
        print(
            f"| {name} | {statistics.median(taken):.1f} "
            f"| {min(taken):.1f}–{max(taken):.1f} |"
        )


def own_peak(python: Sequence[str]) -> int:
    """Return the memory that an interpreter needs to run nothing."""
    done = subprocess.run(
        [*python, "-c", OWN_PEAK], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def bench_memory(
    home: Path, pythons: Sequence[str], sizes: Sequence[int] = (64, 512, 4096)
) -> None:
    """Print the peaks of both sides; sizes in MiB."""
    runs = [(python, [python]) for python in pythons] + [
        (f"{python}, ulimit -v {ADDRESS_SPACE_KIB}", [*LIMITED, python])
        for python in pythons
    ]
    rows: list[tuple[str, int, float, float]] = []
    with harness.gateway(home) as gateway:
        idle = harness.peak_memory(gateway.process.pid)
        for size in sizes:
            path = home / "m.tflite"
            make_file(path, size * MIB, seed=size)
            publish(gateway, path, "by-curl")
            for stored in (home / "objects" / "models" / "by-curl").glob("*.tflite"):
                stored.unlink()
            with path.open("r+b") as file:
                file.seek(64)
                file.write(b"another!")
            uploaded = sdk_upload(gateway, path, "m")["peak"]
            rows.append(("SDK, upload", size, uploaded, own_peak([sys.executable])))
            path.unlink()
            for name, python in runs:
                peak = sdk_download(gateway, home, "m", python=python)["peak"]
                rows.append((f"SDK, download, {name}", size, peak, own_peak(python)))
        busy = harness.peak_memory(gateway.process.pid)
    print("\n### Peak memory\n")
    print(f"Gateway: idle {idle / MIB:.0f} MiB, after all {busy / MIB:.0f} MiB.\n")
    print("| | file, MiB | peak, MiB | over the interpreter's own |\n|---|--:|--:|--:|")
    for name, size, peak, own in rows:
        print(f"| {name} | {size} | {peak / MIB:.1f} | {(peak - own) / MIB:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "download": bench_download,
        "upload": bench_upload,
        "sdk": bench_sdk,
        "connections": bench_connections,
        "throttled": bench_throttled,
        "cached": bench_cached,
    }
    names = [*parts, "memory"]
    parser.add_argument("parts", nargs="*", help="default: all", metavar="PART")
    parser.add_argument("--size", type=int, default=512, help="MiB (default 512)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--home", default="/dev/shm", help="where files lie")  # noqa: S108 - memory-backed on purpose
    parser.add_argument(
        "--link", type=float, action="append", help="Gbit/s, for sdk; 0 is none"
    )
    parser.add_argument(
        "--python", action="append", default=[], help="one more, for memory"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(names):
        parser.error(f"no such part: {', '.join(unknown)}; there are {names}")
    if options.link:
        parts["sdk"] = functools.partial(bench_sdk, links=options.link)
    harness.describe_machine()
    for part in options.parts or names:
        with tempfile.TemporaryDirectory(dir=options.home) as directory:
            home = Path(directory)
            if part == "memory":
                bench_memory(home, [sys.executable, *options.python])
            else:
                parts[part](home, options.size * MIB, options.repeats)


if __name__ == "__main__":
    main()
