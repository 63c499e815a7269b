"""Whether the time of a refused sign-in tells a user who exists from one who does not.

python benchmarks/sign_in_timing.py [--rounds 400]

A gateway of its own, on SQLite, answers sign-ins over loopback, in turns and in random
order within each round: an unknown name, a known name with a wrong secret of the known
secret's own id, a known name with a secret of no id, a disabled user with the right
secret, and no name at all. Slowing is switched off, as it would tell nothing but the
number of attempts. For each pair of kinds: the difference of the medians with a
bootstrap interval of 95 %, and the Mann-Whitney test's p. What differs measurably has
an interval without zero.
"""

from __future__ import annotations

import argparse
import http.client
import math
import random
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path
from urllib.parse import urlencode

import harness

_RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    rounds: int = parser.parse_args().rounds
    harness.describe_machine()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        unslowed = {"VISION_O3_MAX_FAILED_SIGN_INS": "1000000"}
        with harness.gateway(home, settings=unslowed) as served:
            kinds = _make_kinds(served)
            times = _measure(served.url, kinds, rounds)
    print(f"\n| kind, {rounds} attempts each | median ms | p10–p90 ms |\n|---|--:|--:|")
    for kind, taken in times.items():
        tenths = statistics.quantiles(taken, n=10)
        print(
            f"| {kind} | {1e3 * statistics.median(taken):.3f} "
            f"| {1e3 * tenths[0]:.3f}–{1e3 * tenths[-1]:.3f} |"
        )
    print("\n| pair | difference of medians, µs | 95 % | Mann-Whitney p |")
    print("|---|--:|--:|--:|")
    for one, other in combinations(times, 2):
        low, high = _interval(times[one], times[other])
        difference = statistics.median(times[one]) - statistics.median(times[other])
        print(
            f"| {one} − {other} | {1e6 * difference:+.0f} "
            f"| {1e6 * low:+.0f} … {1e6 * high:+.0f} "
            f"| {_mann_whitney(times[one], times[other]):.3f} |"
        )


def _measure(
    url: str, kinds: dict[str, tuple[str, str]], rounds: int
) -> dict[str, list[float]]:
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    warm = 10
    for number in range(rounds + warm):
        order = list(kinds)
        random.shuffle(order)
        for kind in order:
            user, secret = kinds[kind]
            body = urlencode(
                {"grant_type": "password", "username": user, "password": secret}
            )
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            started = time.perf_counter()
            connection.request("POST", "/auth/token", body, headers)
            answer = connection.getresponse()
            answer.read()
            taken = time.perf_counter() - started
            if answer.status != 401:
                raise SystemExit(f"{kind}: {answer.status}")
            if number >= warm:
                times[kind].append(taken)
    return times


def _interval(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return the bootstrap interval of 95 % of the difference of medians."""
    differences = sorted(
        statistics.median(random.choices(one, k=len(one)))
        - statistics.median(random.choices(other, k=len(other)))
        for _ in range(_RESAMPLES)
    )
    return differences[_RESAMPLES // 40], differences[-_RESAMPLES // 40]


def _mann_whitney(one: list[float], other: list[float]) -> float:
    """Return the two-sided p of the Mann-Whitney U test, by the normal approximation.

    See Mann and Whitney, "On a Test of Whether one of Two Random Variables is
    Stochastically Larger than the Other", 1947. Times are taken to have no ties.
    """
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    ranks = sum(rank for rank, (_, which) in enumerate(ranked, 1) if which == 0)
    n, m = len(one), len(other)
    u = ranks - n * (n + 1) / 2
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    z = (u - n * m / 2) / deviation
    return math.erfc(abs(z) / math.sqrt(2))


def _make_kinds(served: harness.Gateway) -> dict[str, tuple[str, str]]:
    """Return names and secrets, none of which signs in."""
    secrets = {
        name: served.operator("user", "add", name, "--role", "reader")["secret"]
        for name in ("known", "disabled")
    }
    served.operator("user", "disable", "disabled")
    right = secrets["known"]
    return {
        "unknown user": ("unknown", right[:-4] + "AAAA"),
        "known user, wrong secret": ("known", right[:-4] + "AAAA"),
        "known user, secret of no form": ("known", "x" * len(right)),
        "disabled user, right secret": ("disabled", secrets["disabled"]),
        "no user's name": ("no name", right),
    }


if __name__ == "__main__":
    main()
