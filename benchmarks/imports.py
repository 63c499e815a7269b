"""What importing the package costs over starting the interpreter.

    python benchmarks/imports.py python3.8 python3.11 python3.13

Each interpreter sees the package's source and the standard library alone, from an
environment of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

import harness

PROGRAMS = (
    "pass",
    "import vision_o3",
    "from vision_o3 import VisionO3Client",
)


def measure(interpreter: str, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds and processor seconds that each program took.

    The programs take turns; their bytecode is compiled before.
    """
    times: dict[str, list[tuple[float, float]]] = {each: [] for each in PROGRAMS}
    with tempfile.TemporaryDirectory() as home:
        harness.timed([interpreter, "-m", "venv", "--without-pip", f"{home}/empty"])
        python = f"{home}/empty/bin/python"
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(harness.REPOSITORY / "src"),
            "PYTHONPYCACHEPREFIX": f"{home}/compiled",
        }

        def run(program: str) -> tuple[float, float]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken = harness.timed([python, "-c", program], env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            user, system = (after[n] - before[n] for n in (0, 1))
            return taken, user + system

        for program in PROGRAMS:
            run(program)
        for _ in range(repeats):
            for program in PROGRAMS:
                times[program].append(run(program))
    return times


def version_of(interpreter: str) -> str:
    """Return the version of an interpreter."""
    done = subprocess.run(
        [interpreter, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "interpreters", nargs="*", default=[sys.executable], metavar="PYTHON"
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    harness.describe_machine()
    print(f"\n### Import, medians of {options.repeats}\n")
    print("| Python | program | ms | over `pass` | processor ms | over `pass` |")
    print("|---|---|--:|--:|--:|--:|")
    for interpreter in options.interpreters:
        version = version_of(interpreter)
        medians = {
            program: [
                statistics.median(times) * 1e3 for times in zip(*taken, strict=True)
            ]
            for program, taken in measure(interpreter, options.repeats).items()
        }
        wall_base, cpu_base = medians["pass"]
        for program, (wall, cpu) in medians.items():
            print(
                f"| {version} | `{program}` | {wall:.1f} | {wall - wall_base:.1f} "
                f"| {cpu:.1f} | {cpu - cpu_base:.1f} |"
            )


if __name__ == "__main__":
    main()
