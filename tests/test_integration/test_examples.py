"""The examples and the README's commands, run as a user runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.model_files import onnx, tflite
from tests.test_integration.gateways import VISION_O3, Site, running

pytestmark = pytest.mark.integration

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
        name, secret = site.add_user("ann", "model:read", "model:write")
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


def test_commands_of_the_readme_work_in_their_order(tmp_path: Path) -> None:
    """All lines of the section on a gateway of one's own after `user add`."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.split("## A gateway of your own")[1].split("\n## ")[0]
    lines = re.findall(
        r"^vision-o3 (?!serve|user)(.+?)(?:\s+#.*)?$", section, re.MULTILINE
    )
    assert len(lines) >= 4
    (tmp_path / "detector.onnx").write_bytes(onnx())
    site = Site(tmp_path, f"sqlite:///{tmp_path}/registry.db")
    with running(site) as (gateway,):
        name, secret = site.add_user("ann", "model:read", "model:write")
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("VISION_O3")},
            "HOME": str(tmp_path),
            "VISION_O3_CLIENT_ID": name,
            "VISION_O3_CLIENT_SECRET": secret,
        }
        for line in lines:
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
