from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from tests.fakes.fake_gateway import FakeGateway, InMemoryTransport
from vision_o3.sdk import cli
from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.retry import RetryPolicy

MIB = 1 << 20


Run = Callable[..., Tuple[int, str, str]]


class FakeClock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: List[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def content_of(size: int, seed: int = 1) -> bytes:
    """Return bytes in which no two leaves are the same."""
    block = bytes((i * 7 + seed) % 251 for i in range(4096))
    parts = [i.to_bytes(4, "big") + block[4:] for i in range(size // 4096 + 1)]
    return b"".join(parts)[:size]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def served(gateway: FakeGateway) -> Iterator[FakeGateway]:
    with gateway.serving():
        yield gateway


MakeClient = Callable[..., VisionO3Client]


@pytest.fixture
def make_client(
    gateway: FakeGateway, clock: FakeClock, tmp_path: Path
) -> Iterator[MakeClient]:
    """Return a maker of clients that reach the gateway in memory."""
    made: List[VisionO3Client] = []

    def make(**options: Any) -> VisionO3Client:
        transport = InMemoryTransport({gateway.url: gateway})
        values = {
            "cache_dir": tmp_path / "cache",
            "transport": transport,
            "clock": clock,
            "retries": RetryPolicy(),
            **options,
        }
        made.append(VisionO3Client(gateway.url, **values))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: MakeClient) -> VisionO3Client:
    return make_client()


def cached_files(directory: Path) -> List[Path]:
    """Return what a cache directory offers: no partial files, nothing on versions."""
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not {"resolved", "partial"} & set(path.parts)
    ]


@pytest.fixture
def run(
    tmp_path: Path,
    served: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command against the gateway; return exit code, output and errors."""
    for name in list(os.environ):
        if name.startswith("VISION_O3"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VISION_O3_URL", served.url)
    monkeypatch.setenv("VISION_O3_CACHE", str(tmp_path / "cache"))

    def run_command(*words: str) -> Tuple[int, str, str]:
        code = cli.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
