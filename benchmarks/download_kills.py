"""Kill a downloading process again and again; count what the server sends again.

    python benchmarks/download_kills.py --kills 100

Ends with 1, and says what is wrong, if the result is not what its CID names or anything
else is left in the cache.
"""

from __future__ import annotations

import argparse
import sys

import harness

sys.path.insert(0, str(harness.REPOSITORY))

from tests.test_integration.download_killing import kill_again_and_again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--size", type=int, default=200, help="MiB (default 200)")
    parser.add_argument("--rate", type=float, default=40, help="MB/s (default 40)")
    parser.add_argument("--seed", type=int, default=20261125)
    options = parser.parse_args()
    harness.describe_machine()
    figures = kill_again_and_again(
        options.kills, options.size * harness.MIB, options.rate * 1e6, options.seed
    )
    print("\n### kill -9 of a download\n")
    print(figures.table())
    for problem in figures.problems:
        print(problem)
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
