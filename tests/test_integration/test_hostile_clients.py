"""Hostile clients before a real gateway process on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_integration.gateways import postgres_database

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile_clients.py"


@pytest.mark.integration
def test_attacks_get_their_answers_and_others_theirs() -> None:
    with postgres_database() as url:
        done = subprocess.run(
            [sys.executable, SCRIPT, "--scale", "0.02", "--database", url],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert done.stdout.count("\n| ") > 15
