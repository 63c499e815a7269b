"""Downloading processes that die, and that share a cache.

A few kills in the suite; VISION_O3_TEST_KILLS=100 for more, and
`benchmarks/download_kills.py` for figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.fake_gateway import FakeGateway
from tests.fakes.misbehaving_server import MIB, GeneratedFile, MisbehavingServer
from tests.test_integration.download_killing import kill_again_and_again, start
from vision_o3.content.dag import cid_of_stream

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("VISION_O3_TEST_KILLS", "5"))
IN_FLIGHT = 8
"""Leaves: one that is received, and one that is verified, for each connection."""


def test_a_kill_costs_the_leaves_in_flight() -> None:
    figures = kill_again_and_again(KILLS, size=24 * MIB + 9, rate=30e6)
    assert figures.problems == []
    assert figures.kills == KILLS
    assert max(figures.again) <= IN_FLIGHT


@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_share_a_cache(tmp_path: Path, killed: bool) -> None:
    """They share the transfer too, and go on if the one that makes it dies."""
    gateway, file = FakeGateway(), GeneratedFile(8 * MIB + 9)
    cid = file.publish(gateway, "generated")
    server = MisbehavingServer(gateway)
    server.always("/download", file.serve(rate=8e6))
    with server.serving():
        processes = [start(server.url, tmp_path) for _ in range(8)]
        if killed:
            while not file.sent:
                server.stopping.wait(0.01)
            for process in processes[::2]:
                process.kill()
        endings = [process.communicate(timeout=120) for process in processes]
        server.settle()
    survivors = slice(1, None, 2) if killed else slice(None)
    assert [p.returncode for p in processes[survivors]] == [0] * len(endings[survivors])
    (path,) = {Path(output.strip()) for output, _ in endings[survivors]}
    with path.open("rb", buffering=0) as stream:
        assert str(cid_of_stream(stream).root) == cid
    assert sum(file.sent.values()) <= 2 * file.size
    assert list((tmp_path / "partial").glob("*")) == []
