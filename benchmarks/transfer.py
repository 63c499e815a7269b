"""Upload and download of one large file, against curl, nginx and FastAPI's own form.

    python benchmarks/transfer.py                       # everything
    python benchmarks/transfer.py download upload       # parts
    python benchmarks/transfer.py --size 512 --repeats 5 --home /dev/shm

Parts: `download` (gateway against nginx), `upload` (gateway against `UploadFile`
written to disk, and sha256 alone), `sdk` (verified download against `curl -o`, on bare
loopback and through links of 1 and 5 Gbit/s; root and iproute2 needed for the links),
`memory` (2 GiB up and down, peak memory of both sides).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import MIB, Contender

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fakes.model_files import tflite

SDK_DOWNLOAD = """
import json, sys, time
url, client_id, secret, cache, name = sys.argv[1:]
from vision_o3 import VisionO3Client
with VisionO3Client(url, credentials=(client_id, secret), cache_dir=cache) as client:
    client.get_model_info(name)
    started = time.perf_counter()
    client.download_model(name)
    taken = time.perf_counter() - started
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(json.dumps({"taken": taken, "peak": int(peak) * 1024}))
"""
SDK_UPLOAD = """
import json, sys
url, client_id, secret, path, name = sys.argv[1:]
from vision_o3 import VisionO3Client
with VisionO3Client(url, credentials=(client_id, secret)) as client:
    client.upload_model(path, name)
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(json.dumps({"peak": int(peak) * 1024}))
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


def sdk_download(gateway: harness.Gateway, home: Path, name: str) -> dict[str, float]:
    cache = home / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", SDK_DOWNLOAD, gateway.url, gateway.client_id]
        + [gateway.client_secret, str(cache), name],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(cache)
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

            def to_gateway() -> float:
                nonlocal count
                count += 1
                with path.open("r+b") as file:  # new content: nothing is stored already
                    file.seek(64)  # after the model
                    file.write(count.to_bytes(8, "little"))
                taken = curl(
                    "-H", bearer, "-F", f"name=m{count}", "-F", f"file=@{path}",
                    f"{gateway.url}/models",
                )  # fmt: skip
                stored = home / "objects" / "models" / f"m{count}" / "v1.tflite"
                assert stored.stat().st_size == size
                stored.unlink()
                return taken

            harness.compare(
                "Upload, multipart form",
                [
                    Contender("sha256 alone, one core", sha256_alone),
                    Contender("gateway: hashed, inspected, stored", to_gateway),
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
    title: str, gateway: harness.Gateway, home: Path, size: int, repeats: int
) -> None:
    target = str(home / "downloaded")
    url = f"{gateway.url}/models/m/download"
    bearer = f"Authorization: Bearer {gateway.token()}"
    harness.compare(
        title,
        [
            Contender("curl -o", lambda: curl("-o", target, "-H", bearer, url)),
            Contender(
                "SDK, verified",
                lambda: sdk_download(gateway, home, "m")["taken"],
            ),
        ],
        size=size,
        repeats=repeats,
    )


def bench_sdk(home: Path, size: int, repeats: int) -> None:
    path = home / "m.tflite"
    make_file(path, size)
    with harness.gateway(home) as gateway:
        publish(gateway, path, "m")
        compare_sdk("SDK, bare loopback", gateway, home, size, repeats)
    with (
        harness.namespace() as inside,
        harness.gateway(home, inside=inside, host=harness.LINK[1]) as gateway,
    ):
        for gigabits in (5, 1):
            harness.shape(inside, gigabits)
            compare_sdk(f"SDK, {gigabits} Gbit/s", gateway, home, size, repeats)


def bench_memory(home: Path) -> None:
    size = 2048 * MIB
    path = home / "m.tflite"
    make_file(path, size)
    print("\n### Peak memory, 2 GiB\n")
    print("| | MiB |\n|---|--:|")
    with harness.gateway(home) as gateway:
        idle = harness.peak_memory(gateway.process.pid)
        publish(gateway, path, "by-curl")
        with path.open("r+b") as file:
            file.seek(16)
            file.write(b"another!")
        uploaded = subprocess.run(
            [sys.executable, "-c", SDK_UPLOAD, gateway.url, gateway.client_id]
            + [gateway.client_secret, str(path), "by-sdk"],
            check=True,
            capture_output=True,
            text=True,
        )
        after_uploads = harness.peak_memory(gateway.process.pid)
        path.unlink()
        downloaded = sdk_download(gateway, home, "by-curl")
        after = harness.peak_memory(gateway.process.pid)
    for name, peak in (
        ("gateway, idle", idle),
        ("gateway, after two uploads", after_uploads),
        ("gateway, after a download too", after),
        ("SDK, upload", json.loads(uploaded.stdout)["peak"]),
        ("SDK, download", downloaded["peak"]),
    ):
        print(f"| {name} | {peak / MIB:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["download", "upload", "sdk", "memory"]
    parser.add_argument("parts", nargs="*", help="default: all", metavar="PART")
    parser.add_argument("--size", type=int, default=512, help="MiB (default 512)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--home", default="/dev/shm", help="where files lie")  # noqa: S108 - memory-backed on purpose
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}; there are {parts}")
    harness.describe_machine()
    size = options.size * MIB
    for part in options.parts or parts:
        with tempfile.TemporaryDirectory(dir=options.home) as directory:
            home = Path(directory)
            if part == "download":
                bench_download(home, size, options.repeats)
            elif part == "upload":
                bench_upload(home, size, options.repeats)
            elif part == "sdk":
                bench_sdk(home, size, options.repeats)
            else:
                bench_memory(home)


if __name__ == "__main__":
    main()
