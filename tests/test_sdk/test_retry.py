from __future__ import annotations

from typing import List

import pytest

from tests.test_sdk.conftest import FakeClock
from vision_o3.errors import InputError, TransportError
from vision_o3.sdk.retry import Attempts, RetryPolicy


def run(attempts: Attempts, errors: List[Exception], clock: FakeClock) -> List[float]:
    """Return the waits until the work succeeds, after all errors were raised."""

    def work() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert attempts.call(work) == "done"
    return clock.slept


def test_waits_longer_each_time_up_to_a_bound(clock: FakeClock) -> None:
    policy = RetryPolicy(attempts=6, base_s=1, longest_s=4)
    attempts = Attempts(policy, clock, random=lambda: 1.0)
    errors: List[Exception] = [TransportError("x") for _ in range(5)]
    assert run(attempts, errors, clock) == [1, 2, 4, 4, 4]


def test_waits_are_random(clock: FakeClock) -> None:
    waits = run(Attempts(RetryPolicy(), clock), [TransportError("x")] * 3, clock)
    assert 0 <= waits[0] <= 0.5
    assert 0 <= waits[1] <= 1
    assert len(set(waits)) == 3


def test_what_cannot_pass_is_not_tried_again(clock: FakeClock) -> None:
    with pytest.raises(InputError):
        run(Attempts(RetryPolicy(), clock), [InputError("x")], clock)
    assert clock.slept == []


def test_attempts_are_bounded(clock: FakeClock) -> None:
    with pytest.raises(TransportError):
        run(Attempts(RetryPolicy(attempts=3), clock), [TransportError("x")] * 3, clock)
    assert len(clock.slept) == 2


def test_retry_after_is_honoured_and_adds_to_the_jitter(clock: FakeClock) -> None:
    attempts = Attempts(RetryPolicy(base_s=1), clock, random=lambda: 0.5)
    error = TransportError("x", retry_after_s=7)
    assert run(attempts, [error], clock) == [7.5]


def test_gives_up_at_once_when_it_would_wait_too_long(clock: FakeClock) -> None:
    error = TransportError("x", retry_after_s=500)
    with pytest.raises(TransportError):
        run(Attempts(RetryPolicy(total_s=120), clock), [error], clock)
    assert clock.slept == []


def test_time_without_progress_is_bounded(clock: FakeClock) -> None:
    attempts = Attempts(RetryPolicy(attempts=99, total_s=10, base_s=4), clock)
    attempts._random = lambda: 1.0
    with pytest.raises(TransportError):
        run(attempts, [TransportError("x")] * 9, clock)
    assert sum(clock.slept) <= 10


def test_progress_starts_the_counts_anew(clock: FakeClock) -> None:
    attempts = Attempts(RetryPolicy(attempts=2), clock, random=lambda: 1.0)
    for _ in range(5):
        attempts.failed(TransportError("x"))
        attempts.progressed()
    assert clock.slept == [0.5] * 5
