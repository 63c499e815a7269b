"""Real models, or a skipped test where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.real_models import real_model


def real(kind: str) -> Path:
    """Return the path of a real model; in CI it must be there."""
    try:
        return real_model(kind)
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"A package with a real model cannot be had: {error}")
