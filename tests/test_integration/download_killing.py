"""`kill -9` of a downloading process again and again; what each costs is counted.

The server sends at a bounded rate and counts the bytes of each leaf. What it sends of a
leaf beyond the leaf's size was sent in vain: the kill before had lost it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.fake_gateway import FakeGateway
from tests.fakes.misbehaving_server import MIB, GeneratedFile, MisbehavingServer
from vision_o3.content.dag import cid_of_stream

DOWNLOADER = """
import sys
from vision_o3.sdk.client import VisionO3Client

with VisionO3Client(sys.argv[1], cache_dir=sys.argv[2]) as client:
    print(client.download_model("generated"))
"""
_GIVEN_UP_S = 120.0


@dataclass
class Figures:
    """What a campaign found.

    Attributes:
        kills: Made while the download ran.
        downloads: Completed, each into an empty cache.
        size: Of the file, in bytes.
        again: Leaves sent again after each kill, even if only in part.
        again_bytes: Bytes sent again after each kill.
        problems: What was wrong, in words.
    """

    kills: int = 0
    downloads: int = 0
    size: int = 0
    again: list[int] = field(default_factory=list)
    again_bytes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return them as Markdown."""
        kills = max(1, self.kills)
        rows = {
            "kills": f"{self.kills}",
            "downloads completed": f"{self.downloads} of {self.size // MIB} MiB",
            "leaves sent again after a kill, mean": f"{sum(self.again) / kills:.1f}",
            "leaves sent again after a kill, most": f"{max(self.again, default=0)}",
            "MiB sent again after a kill, mean": (
                f"{sum(self.again_bytes) / kills / MIB:.2f}"
            ),
            "MiB sent again after a kill, most": (
                f"{max(self.again_bytes, default=0) / MIB:.2f}"
            ),
            "problems": f"{len(self.problems)}",
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["| | |", "|---|--:|", *lines])


def start(url: str, cache: Path, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a process that downloads the generated file."""
    return subprocess.Popen(
        [python, "-c", DOWNLOADER, url, str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_again_and_again(
    kills: int, size: int, rate: float, seed: int = 20261125
) -> Figures:
    """Kill a download so many times; then let it end, and look at its result.

    The moments are random, from the start of a process on. They come sooner when the
    download would else be done before the kills are. A kill before the first byte was
    sent costs nothing, and is not counted.

    Args:
        kills: How many.
        size: Of the file, in bytes.
        rate: At which the server sends, in bytes a second.
        seed: Of the random moments.
    """
    figures = Figures(size=size)
    chance = random.Random(seed)
    gateway, file = FakeGateway(), GeneratedFile(size)
    cid = file.publish(gateway, "generated")
    leaves = -(-size // MIB)
    server = MisbehavingServer(gateway)
    server.always("/download", file.serve(rate))
    with server.serving(), tempfile.TemporaryDirectory() as home:
        cache, window_s = Path(home, "0"), 0.8
        while True:
            before = dict(file.sent)
            process = start(server.url, cache)
            last = figures.kills == kills
            ended = _wait(process, None if last else chance.uniform(0, window_s))
            server.settle()
            again = [
                (number, file.sent[number] - max(count, len(file.leaf(number))))
                for number, count in before.items()
                if file.sent[number] > count
            ]
            if before:
                figures.again.append(len(again))
                figures.again_bytes.append(sum(max(0, count) for _, count in again))
            if not ended:
                figures.kills += bool(file.sent)
                done = sum(count >= MIB for count in file.sent.values()) / leaves
                early = not file.sent or done < figures.kills / kills
                window_s *= 1.25 if early else 0.8
                continue
            figures.downloads += 1
            _check(figures, process, cid)
            if last:
                return figures
            cache = Path(home, str(figures.downloads))
            file.sent.clear()


def _wait(process: subprocess.Popen[str], moment_s: float | None) -> bool:
    """Return whether the process ended by itself; else it is dead now."""
    try:
        process.wait(timeout=_GIVEN_UP_S if moment_s is None else moment_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    return True


def _check(figures: Figures, process: subprocess.Popen[str], cid: str) -> None:
    """See that the file is right, and the only thing in the cache."""
    output, errors = process.communicate()
    if process.returncode:
        figures.problems.append(f"exit {process.returncode}: {errors[-500:]}")
        return
    path = Path(output.strip())
    with path.open("rb", buffering=0) as stream:
        if str(cid_of_stream(stream).root) != cid:
            figures.problems.append(f"{path} is not {cid}")
    left = list((path.parent.parent.parent / "partial").glob("*"))
    if left:
        figures.problems.append(f"left in the cache: {left}")
    path.unlink()
