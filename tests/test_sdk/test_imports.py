"""What is loaded, and when: a device starts often, and not all it does needs all."""

from __future__ import annotations

import subprocess
import sys
from typing import List

import pytest

SELDOM = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "email",
    "fsspec",
    "http.client",
    "logging",
    "random",
    "socket",
    "ssl",
    "subprocess",
    "tarfile",
    "tempfile",
    "urllib.request",
    "vision_o3.content.manifest",
    "vision_o3.sdk.aio",
    "vision_o3.sdk.cli",
    "vision_o3.sdk.dataset_files",
    "vision_o3.sdk.differences",
    "zipfile",
}


def loaded(code: str) -> List[str]:
    """Return the modules that are loaded after some lines, beyond the bare start."""
    code = f"import sys; bare = set(sys.modules); {code}"
    code += "; print(*(set(sys.modules) - bare))"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {sys.path!r}; {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_package_loads_nothing_but_itself() -> None:
    found = [name for name in loaded("import vision_o3") if "vision_o3" in name]
    assert found == ["vision_o3"]


def test_client_loads_what_every_call_needs() -> None:
    found = loaded("from vision_o3 import VisionO3Client")
    assert SELDOM.isdisjoint(found)
    assert len([name for name in found if name.startswith("vision_o3")]) <= 30
    assert len(found) <= 130


@pytest.mark.parametrize("module", ["vision_o3", "vision_o3.sdk"])
def test_every_name_that_is_offered_can_be_loaded(module: str) -> None:
    code = f"import {module} as m; [getattr(m, name) for name in m.__all__]"
    assert "vision_o3.sdk.client" in loaded(code)
    refused = "hasattr(m, 'nothing_of_this_name')"
    assert loaded(f"import {module} as m; assert not {refused}")
