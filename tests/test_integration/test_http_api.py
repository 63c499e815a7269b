"""The HTTP API as strangers use it who have only its OpenAPI document."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.gateways import Site, running
from vision_o3.content.dag import cid_of_bytes

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
TOOLS = REPOSITORY / ".venv" / "contracts"
EXAMPLE = REPOSITORY / "examples" / "generated_client.py"


@pytest.fixture(autouse=True)
def tools() -> Path:
    if not (TOOLS / "ready").exists():
        assert os.environ.get("CI") != "true", f"{TOOLS} is missing"
        pytest.skip(f"Schemathesis and openapi-python-client are not in {TOOLS}")
    return TOOLS / "bin"


def test_made_up_requests_are_answered_as_the_document_says() -> None:
    """A short run; ``fuzz/http_api.py`` by itself tries 5,000 cases an operation."""
    script = REPOSITORY / "fuzz" / "http_api.py"
    done = subprocess.run(
        [sys.executable, script, "--max-examples", "3", "--seed", "20261125"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_generated_client_publishes_lists_fetches_and_reads_errors(
    tools: Path, tmp_path: Path
) -> None:
    model = tmp_path / "detector.tflite"
    model.write_bytes(tflite(1, 2 << 20))
    site = Site(tmp_path, f"sqlite:///{tmp_path}/registry.db")
    with running(site) as (gateway,):
        name, secret = site.add_user("ann", "model:read", "model:write")
        overrides = re.search(r"echo '(.+?)' >", EXAMPLE.read_text(), re.DOTALL)
        assert overrides is not None
        (tmp_path / "generator.yaml").write_text(overrides[1])
        generate = [
            str(tools / "openapi-python-client"),
            "generate",
            "--fail-on-warning",
        ]
        generate += ["--url", f"{gateway.url}/openapi.json", "--meta", "none"]
        generate += ["--config", "generator.yaml"]
        generate += ["--output-path", "client/vision_o3_client"]
        path = f"{tools}:{os.environ['PATH']}"  # where it finds its formatter
        subprocess.run(
            generate, cwd=tmp_path, check=True, env={**os.environ, "PATH": path}
        )
        used = subprocess.run(
            [str(tools / "python"), str(EXAMPLE), str(model), "text-detector"],
            env={
                "PYTHONPATH": str(tmp_path / "client"),
                "VISION_O3_URL": gateway.url,
                "VISION_O3_CLIENT_ID": name,
                "VISION_O3_CLIENT_SECRET": secret,
            },
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    cid = cid_of_bytes(model.read_bytes())
    assert used.stdout.splitlines() == [
        f"text-detector version 1: {cid}",
        "The list has ['text-detector']",
        f"Fetched {model.stat().st_size} bytes, True",
        used.stdout.splitlines()[-1],
    ]
    assert used.stdout.splitlines()[-1].startswith("not_found: ")
