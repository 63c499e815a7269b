"""Feed damaged files to the inspection of a format, and count what comes out.

    python fuzz/inspectors.py --seconds 600              # every format, one by one
    python fuzz/inspectors.py onnx h5 --seconds 600 --jobs 2

Seeds are real models (``scripts/real_models.py``) and the small files that the tests
build. Each input is a seed with a few changes: bits, numbers at their edges, pieces cut
out, doubled, or taken from another seed. It is inspected as the gateway's process does,
under the same bounds. Whatever is neither facts of the right shape nor one of our
refusals is a finding: the input is kept, and the exit code is 1. A reader in C that
crashes its process is counted apart: it costs the gateway one request.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.seeds import seeds_of
from vision_o3.errors import FormatError, LimitExceededError, UnsafeContentError
from vision_o3.formats.inspection import (
    DATASET_FORMATS,
    MODEL_FORMATS,
    Outputs,
    inspect,
)
from vision_o3.formats.limits import Limits
from vision_o3.formats.worker import bound_process
from vision_o3.schemas.facts import NEW_FACTS

FORMATS = MODEL_FORMATS + DATASET_FORMATS
INPUTS_A_PROCESS = 5_000
INPUTS_A_LINE = 50
"""Inputs after which a process tells its counts. If it dies, its last are lost."""
LIMITS = Limits(
    archive_files=10_000,
    unpacked_bytes=64 << 20,
    json_bytes=8 << 20,
    xml_bytes=8 << 20,
    time_s=5,
    memory_bytes=1 << 30,
)
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1]
EDGES += [2**63 - 1, 2**63, 2**64 - 1]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return a seed with one to eight changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5, 8])):
        if not content:
            content = bytearray(rng.randbytes(16))
        # Headers and directories are at the ends: look there more often.
        near = min(len(content), rng.choice([64, 512, 4096, len(content)]))
        at = rng.randrange(near)
        if rng.random() < 0.4:
            at = len(content) - 1 - at
        rng.choice(CHANGES)(rng, content, at, seeds)
    return bytes(content)


def flip(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    content[at] ^= 1 << rng.randrange(8)


def replace(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    content[at] = rng.randrange(256)


def put_edge(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    width = rng.choice([1, 2, 4, 8])
    value = rng.choice(EDGES) & (1 << 8 * width) - 1
    order: Literal["little", "big"] = rng.choice(["little", "big"])
    content[at : at + width] = value.to_bytes(width, order)


def cut_out(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    del content[at : at + rng.choice([1, 2, 8, 64, 1024])]


def double(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    piece = content[at : at + rng.choice([1, 4, 32, 256, 4096])]
    content[at:at] = piece * rng.choice([1, 1, 2, 16])


def insert(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    content[at:at] = rng.randbytes(rng.choice([1, 2, 4, 16]))


def mix(rng: random.Random, content: bytearray, at: int, seeds: list[bytes]) -> None:
    other = rng.choice(seeds)
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + rng.choice([4, 32, 512])]
    content[at : at + len(piece)] = piece


def cut_off(_: random.Random, content: bytearray, at: int, __: list[bytes]) -> None:
    del content[at:]


def count(rng: random.Random, content: bytearray, at: int, _: list[bytes]) -> None:
    width = rng.choice([1, 2, 4])
    number = int.from_bytes(content[at : at + width], "little")
    changed = (number + rng.choice([-2, -1, 1, 2, 16])) & (1 << 8 * width) - 1
    content[at : at + width] = changed.to_bytes(width, "little")


CHANGES = (flip, replace, put_edge, cut_out, double, insert, mix, cut_off, count)


def mutate_tar(rng: random.Random, tars: list[bytes]) -> bytes:
    """Return a changed tar archive, compressed: a change of a tar.gz is its CRC's end.

    The checksums of half of them are put right, so that what they hold is looked at.
    """
    content = bytearray(mutate(rng, tars))
    if rng.random() < 0.5:
        for at in range(0, len(content) - 511, 512):
            if content[at + 257 : at + 262] == b"ustar":
                content[at + 148 : at + 156] = b" " * 8
                total = sum(content[at : at + 512])
                content[at + 148 : at + 156] = b"%06o\0 " % total
    return gzip.compress(content, 0)


class TooSlow(BaseException):
    """The inspection took longer than its limit."""


def stop(*_: object) -> None:
    raise TooSlow


def child(declared: str, number: int, until: float, directory: Path) -> None:
    """Inspect inputs until the time is over; print lines of JSON with the counts."""
    rng = random.Random(number)
    seeds = seeds_of(declared)
    tars = [gzip.decompress(seed) for seed in seeds] if declared == "tar.gz" else []
    NEW_FACTS.rebuild()
    bound_process(LIMITS)
    signal.signal(signal.SIGALRM, stop)
    path = directory / f"{declared}-{number}.input"
    inputs = 0
    while time.time() < until and inputs < INPUTS_A_PROCESS:
        outcomes: collections.Counter[str] = collections.Counter()
        slowest = 0.0
        while time.time() < until and outcomes.total() < INPUTS_A_LINE:
            in_tar = tars and rng.random() < 0.8
            path.write_bytes(mutate_tar(rng, tars) if in_tar else mutate(rng, seeds))
            started = time.perf_counter()
            outcomes[outcome_of(path, declared, directory)] += 1
            slowest = max(slowest, time.perf_counter() - started)
        inputs += outcomes.total()
        print(json.dumps({"outcomes": outcomes, "slowest_s": slowest}), flush=True)
    path.unlink(missing_ok=True)


def outcome_of(path: Path, declared: str, directory: Path) -> str:
    """Inspect one input; return what came out, in words."""
    signal.setitimer(signal.ITIMER_REAL, LIMITS.time_s)
    # What loops in C never comes to the handler of the first: this ends the process.
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMITS.time_s + 1)
    try:
        outputs = Outputs(io.BytesIO(), io.BytesIO())
        facts = inspect(path, declared, LIMITS, outputs).facts
        signal.setitimer(signal.ITIMER_REAL, 0)
        NEW_FACTS.validate_python(json.loads(json.dumps(facts, allow_nan=False)))
    except (FormatError, UnsafeContentError, LimitExceededError) as error:
        return error.code
    except MemoryError:
        return "out of memory"
    except TooSlow:
        keep(path, directory, "slow", "")
        return "FINDING too slow"
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        keep(path, directory, "exception", traceback.format_exc())
        return "FINDING exception"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "facts"


def keep(path: Path, directory: Path, kind: str, reason: str) -> None:
    """Keep an input that is a finding, and why."""
    kept = directory / f"finding-{path.stem}-{time.time_ns()}-{kind}"
    kept.write_bytes(path.read_bytes())
    kept.with_name(f"{kept.name}.txt").write_text(reason)


def fuzz(declared: str, seconds: float, directory: Path) -> bool:
    """Fuzz one format; print what came out; return whether nothing was found."""
    until = time.time() + seconds
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, number = 0.0, 0
    first = time.time_ns()
    while time.time() < until:
        command = [sys.executable, __file__, declared, "--child", str(first + number)]
        command += ["--until", str(until), "--directory", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            result = json.loads(line)
            outcomes.update(result["outcomes"])
            slowest = max(slowest, result["slowest_s"])
        if done.returncode:
            path = directory / f"{declared}-{first + number}.input"
            kept = directory / f"crash-{path.stem}"
            if path.exists():
                path.rename(kept)
            outcomes[ended(done.returncode)] += 1
            kept.with_name(f"{kept.name}.txt").write_text(done.stderr)
        if done.returncode > 0:
            break  # the next one would end likewise
        number += 1
    counts = ", ".join(f"{name}: {count}" for name, count in outcomes.most_common())
    print(
        f"{declared}: {outcomes.total()} inputs in {seconds:g} s, slowest "
        f"{slowest:.2f} s; {counts}",
        flush=True,
    )
    return not any(name.startswith("FINDING") for name in outcomes)


def ended(code: int) -> str:
    """Say how a process ended: by a signal, it costs the gateway one request."""
    if code >= 0:
        return f"FINDING exit {code}"
    if code == -signal.SIGVTALRM:
        return "endless in C"
    return f"crash by {signal.Signals(-code).name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT")
    parser.add_argument("--seconds", type=float, default=60, help="for each format")
    parser.add_argument("--jobs", type=int, default=1, help="formats at once")
    parser.add_argument("--directory", type=Path, help="where findings are kept")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(
            arguments.formats[0], arguments.child, arguments.until, arguments.directory
        )
        return 0
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="vision-o3-fuzz-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"Findings are kept in {directory}.", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        clean = list(
            pool.map(
                lambda declared: fuzz(declared, arguments.seconds, directory),
                arguments.formats or FORMATS,
            )
        )
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
