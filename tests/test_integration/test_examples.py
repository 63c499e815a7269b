"""The examples and the README's commands, run as a user runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fakes.model_files import onnx, tflite
from tests.test_integration.gateways import VISION_O3, Site, running

pytestmark = pytest.mark.integration

SCOPES = ("model:read", "model:write", "dataset:read", "dataset:write")
REPOSITORY = Path(__file__).parent.parent.parent


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_publish_and_fetch(tmp_path: Path) -> None:
    model = tmp_path / "detector.tflite"
    model.write_bytes(tflite(1, 3 << 20))
    site = Site(tmp_path, f"sqlite:///{tmp_path}/registry.db")
    with running(site) as (gateway,):
        name, secret = site.add_user("ann", *SCOPES)
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "VISION_O3_URL": gateway.url,
            "VISION_O3_CLIENT_ID": name,
            "VISION_O3_CLIENT_SECRET": secret,
        }
        upload = [sys.executable, str(REPOSITORY / "examples" / "upload_model.py")]
        published = run([*upload, str(model), "text-detector"], environment)
        assert published.startswith("text-detector version 1: bafybei")
        fetch = [sys.executable, str(REPOSITORY / "examples" / "edge_device.py")]
        path = Path(run([*fetch, "text-detector"], environment).strip())
        assert path.read_bytes() == model.read_bytes()
        assert path.name == "text-detector.tflite"
        signs(tmp_path / "signs.zip")
        push = [*VISION_O3, "dataset", "push", str(tmp_path / "signs.zip")]
        run([*push, "--name", "signs"], environment)
        look = [sys.executable, str(REPOSITORY / "examples" / "dataset_files.py")]
        told = run([*look, "signs", "1", str(tmp_path / "out")], environment)
        assert told.startswith("2 files, 2 of them images")
        picture = tmp_path / "out" / "train" / "stop" / "001.jpg"
        assert picture.read_text() == "a picture at train/stop/001.jpg"


def commands_of_the_readme(section: str) -> list[str]:
    """Return the commands of a section but ``serve`` and ``user add``."""
    readme = (REPOSITORY / "README.md").read_text()
    text = readme.split(f"## {section}")[1].split("\n## ")[0]
    return re.findall(r"^vision-o3 (?!serve|user)(.+?)(?:\s+#.*)?$", text, re.MULTILINE)


def signs(path: Path, *more: str) -> None:
    """Write an archive of pictures, as the README has one."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train/stop/001.jpg", "train/yield/001.jpg", *more):
            archive.writestr(name, f"a picture at {name}")


def test_commands_of_the_readme_work_in_their_order(tmp_path: Path) -> None:
    lines = commands_of_the_readme("A gateway of your own")
    files = commands_of_the_readme("On a device")
    assert len(lines) >= 6
    assert len(files) == 9
    (tmp_path / "detector.onnx").write_bytes(onnx())
    (tmp_path / "next.onnx").write_bytes(onnx()[:-1] + b"\x10")
    signs(tmp_path / "signs.zip")
    signs(tmp_path / "more-signs.zip", "train/stop/002.jpg")
    site = Site(tmp_path, f"sqlite:///{tmp_path}/registry.db")
    with running(site) as (gateway,):
        name, secret = site.add_user("ann", *SCOPES)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("VISION_O3")},
            "HOME": str(tmp_path),
            "VISION_O3_CLIENT_ID": name,
            "VISION_O3_CLIENT_SECRET": secret,
        }
        again = [
            "push next.onnx --name text-detector",
            "dataset push more-signs.zip --name street-signs",
        ]
        for line in [*lines, *again, *files]:
            words = shlex.split(line.replace("http://127.0.0.1:8000", gateway.url))
            done = subprocess.run(
                [*VISION_O3, *words],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (line, done.stderr)
