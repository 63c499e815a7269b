"""The guided tour that `scripts/demo` runs: from an empty directory to a lying server.

python examples/tour.py MODEL.onnx
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

from vision_o3 import CIDVerifier, IntegrityError, VisionO3Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.sdk.versions import ModelInfo

VISION_O3 = [sys.executable, "-m", "vision_o3"]
WORDS = "VISION-O3"


def main() -> None:
    model = Path(sys.argv[1])
    home = Path(tempfile.mkdtemp(prefix="vision-o3-demo-"))
    try:
        tour(model, home)
    finally:
        shutil.rmtree(home)


def tour(model: Path, home: Path) -> None:
    environment = {
        **os.environ,
        "VISION_O3_DATABASE_URL": f"sqlite:///{home}/registry.db",
        "VISION_O3_STORE": str(home / "objects"),
        "VISION_O3_JWT_SECRET": secrets.token_urlsafe(48),
    }

    step("A gateway, on SQLite and a directory as object store")
    with gateway(environment, home) as url:
        say(f"vision-o3 serve --migrate   → {url} (API pages at {url}/docs)")

        step("Two users: an engineer who may publish, a device that may only read")
        reads = ("model:read", "dataset:read")
        writes = ("model:write", "dataset:write")
        engineer = add_user(environment, "engineer", *reads, *writes)
        camera = add_user(environment, "camera-7", *reads)

        step(f"The engineer publishes {model.name}, {model.stat().st_size:,} bytes")
        changed = home / "changed.onnx"
        # A second version: the same network with a description (field 6 of ModelProto).
        text = b"Fine-tuned for licence plates."
        changed.write_bytes(model.read_bytes() + bytes([6 << 3 | 2, len(text)]) + text)
        with VisionO3Client(url, credentials=engineer, cache_dir=home / "a") as client:
            for path in (model, changed):
                published = client.upload_model(
                    path,
                    "text-detector",
                    framework="onnx",
                    model_type="detection",
                    tags=["ocr", "edge"],
                )
                say(f"version {published.version}   {published.cid}")

        step("The device fetches it: each 1 MiB is checked before it is written")
        with VisionO3Client(url, credentials=camera, cache_dir=home / "b") as client:
            path = client.download_model("text-detector")
            info = client.get_model_info("text-detector")
            say(f"latest      → version {info.version}, {path.stat().st_size:,} bytes")
            by_version = client.download_model("text-detector", version=info.version)
            by_cid = client.download_model_by_cid(info.cid)
            first = client.download_model("text-detector", version=1)
        computed = CIDVerifier.compute_cid(path)
        check(CIDVerifier.compute_cid(by_version) == computed == info.cid)
        check(CIDVerifier.compute_cid(by_cid) == computed)
        check(path.read_bytes() == changed.read_bytes())
        check(first.read_bytes() == model.read_bytes())
        say(f"by version  → the same CID, computed from the bytes: {computed}")
        say("by CID      → the same bytes; version 1 is still what it was")

        step("The fetched model at work, on a picture drawn just now")
        drawn, found = detect_text(path)
        say(
            f'"{WORDS}" was drawn at   x {drawn[0]}–{drawn[2]}, y {drawn[1]}–{drawn[3]}'
        )
        say(f"text was detected at   x {found[0]}–{found[2]}, y {found[1]}–{found[3]}")
        check(overlap(drawn, found) > 0.5)

        show_facts(info)
        publish_dataset(url, engineer, camera, home)

        step(f"A man in the middle changes one bit of {path.stat().st_size:,} bytes")
        with (
            lying_proxy(url) as liar,
            VisionO3Client(liar, credentials=camera, cache_dir=home / "c") as client,
        ):
            try:
                client.download_model("text-detector")
            except IntegrityError as error:
                say(f"IntegrityError: {error}")
            else:
                sys.exit("The tampered byte was accepted!")
            kept = [p for p in (home / "c").rglob("*.onnx") if p.is_file()]
            check(not kept)
            say("Nothing of it was kept.")

    print(
        "\nThat was the whole path. To go on with a gateway of your own:\n\n"
        "  source .venv/bin/activate\n"
        '  export VISION_O3_JWT_SECRET="$(python3 -c '
        "'import secrets; print(secrets.token_urlsafe(48))')\"\n"
        "  vision-o3 admin migrate\n"
        "  vision-o3 user add me --role publisher\n"
        "  vision-o3 serve &\n"
        "  vision-o3 login http://127.0.0.1:8000\n"
        "  vision-o3 push YOUR-MODEL.onnx --name my-model\n"
        "  vision-o3 pull my-model\n"
    )


def show_facts(info: ModelInfo) -> None:
    step("What the gateway read in the model, without running it")
    facts = info.facts
    for label in ("inputs", "outputs"):
        for tensor in facts[label]:
            kind = f"{tensor['dtype']} {tensor['shape']}"
            say(f"{label[:-1]:<8} {tensor['name']}: {kind}")
    common = list(facts["operators"].items())[:4]
    opset = facts["opset_import"]["ai.onnx"]
    say(f"opset {opset}, {facts['parameters']:,} parameters")
    say(", ".join(f"{count} {name}" for name, count in common) + ", …")


def publish_dataset(
    url: str, engineer: tuple[str, str], camera: tuple[str, str], home: Path
) -> None:
    step("A dataset of pictures in two versions, and one picture out of it")
    with VisionO3Client(url, credentials=engineer, cache_dir=home / "a") as client:
        for number in (1, 2):
            archive = draw_dataset(home / f"signs-{number}.zip", number)
            published = client.upload_dataset(archive, "signs")
            classes = published.facts["annotations"]["classes"]
            say(f"version {published.version}   images by class: {classes}")
    with VisionO3Client(url, credentials=camera, cache_dir=home / "b") as client:
        entry = client.get_dataset_manifest("signs").files[0]
        picture = client.download_dataset_file("signs", entry.path)
        check(CIDVerifier.compute_cid(picture) == str(entry.cid))
        say(f"{entry.path} alone: {entry.size:,} bytes, checked: {entry.cid}")
        files = client.compare_datasets("signs", 1, 2).files
    if files is None or len(files.renamed) != 1:
        sys.exit("This is not what was promised. Please report it.")
    say(
        f"from 1 to 2: {len(files.added)} added, {len(files.removed)} removed, "
        f"{len(files.renamed)} renamed, {files.unchanged} the same"
    )


def step(title: str) -> None:
    step.count = getattr(step, "count", 0) + 1  # type: ignore[attr-defined]
    print(f"\n{step.count}. {title}")  # type: ignore[attr-defined]


def say(line: str) -> None:
    print(f"   {line}")


def check(condition: object) -> None:
    if not condition:
        sys.exit("This is not what was promised. Please report it.")


@contextlib.contextmanager
def gateway(environment: dict[str, str], home: Path) -> Iterator[str]:
    """Run `vision-o3 serve` on a free port; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = home / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*VISION_O3, "serve", "--migrate", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{url}/health/ready", timeout=1).close()
                break
            if process.poll() is not None:
                sys.exit(f"The gateway did not start:\n{log.read_text()}")
            time.sleep(0.1)
        else:
            sys.exit(f"The gateway did not become ready:\n{log.read_text()}")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def add_user(environment: dict[str, str], name: str, *scopes: str) -> tuple[str, str]:
    arguments = [argument for scope in scopes for argument in ("--scope", scope)]
    added = subprocess.run(
        [*VISION_O3, "user", "add", name, *arguments, "--json"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    say(f"vision-o3 user add {name} {' '.join(arguments)}")
    return name, json.loads(added.stdout)["secret"]


def detect_text(model: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where a text was drawn and where the model finds text: x0, y0, x1, y1."""
    picture = Image.new("RGB", (640, 320), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=72)
    draw.text((120, 110), WORDS, fill="black", font=font)
    drawn = tuple(int(v) for v in draw.textbbox((120, 110), WORDS, font=font))

    # PP-OCR's detector: (1, 3, H, W) float32, by ImageNet's mean and deviation,
    # → (1, 1, H, W), the probability of text for each pixel.
    pixels = np.asarray(picture, dtype=np.float32) / 255
    pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(model))
    probability = session.run(None, {session.get_inputs()[0].name: batch})[0][0, 0]
    rows, columns = np.nonzero(probability > 0.3)
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    # The detector marks a shrunken core of each text; this grows it back, as PP-OCR
    # does (its "unclip", ratio 1.6).
    width, height = right - left, bottom - top
    grow = 1.6 * width * height / (2 * (width + height))
    found = (left - grow, top - grow, right + grow, bottom + grow)
    return drawn, tuple(int(v) for v in found)


def draw_dataset(path: Path, version: int) -> Path:
    """Write an archive of pictures, a folder for each class."""
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("stop", "yield"):
            for number in range(4 + version):
                picture = Image.new("RGB", (64, 64), "white")
                ImageDraw.Draw(picture).text((8, 20), f"{kind} {number}", fill="black")
                content = io.BytesIO()
                picture.save(content, "PNG")
                name = (
                    f"{number:03}"
                    if kind == "stop" or number or version == 1
                    else "first"
                )
                archive.writestr(f"{kind}/{name}.png", content.getvalue())
    return path


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return the intersection over union of two boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)


@contextlib.contextmanager
def lying_proxy(url: str) -> Iterator[str]:
    """Run a proxy to the gateway that flips one bit of each download; yield its URL."""
    host = urlsplit(url).netloc

    class Liar(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            upstream = http.client.HTTPConnection(host)
            upstream.request(
                self.command, self.path, self.rfile.read(length), dict(self.headers)
            )
            answer = upstream.getresponse()
            body = bytearray(answer.read())
            if self.path.endswith("/download"):
                body[len(body) // 2] ^= 1
            self.send_response(answer.status)
            for header, value in answer.getheaders():
                if header.lower() not in {"transfer-encoding", "connection", "date"}:
                    self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)
            upstream.close()

        do_GET = do_POST = relay  # noqa: N815 - names set by http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
