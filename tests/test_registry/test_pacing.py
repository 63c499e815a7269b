from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.scripted_store import ScriptedStore
from tests.test_registry.filled import no_sleep
from vision_o3.errors import AlreadyExistsError, TransientStorageError
from vision_o3.registry.pacing import (
    ATTEMPTS,
    Pace,
    PatientStore,
    StoppedError,
    in_order,
)
from vision_o3.storage.memory import MemoryStore

RATE = 1000.0


class Clock:
    """Time that passes while somebody sleeps, or when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, wait_s: float) -> None:
        self.now += wait_s


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 5)), min_size=1, max_size=30)
)
def test_never_more_is_read_than_the_rate_and_a_second_allow(
    reads: list[tuple[int, float]],
) -> None:
    clock = Clock()
    pace = Pace(RATE, clock=clock, sleep=clock.sleep)
    total = 0
    for size, idle_s in reads:
        clock.now += idle_s
        pace(size)
        total += size
        assert total <= RATE * (clock.now + 1) + 1
    assert pace.total == total


def test_busy_reader_gets_the_whole_rate() -> None:
    clock = Clock()
    pace = Pace(RATE, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        clock.now += 0.05
        pace(100)
    assert clock.now == pytest.approx(10.0)


def test_no_rate_waits_for_nothing() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    for _ in range(10):
        pace(1 << 30)
    assert (clock.now, pace.total) == (0.0, 10 << 30)


def test_stopping_wakes_who_waits() -> None:
    pace = Pace(1)
    raised = threading.Event()

    def read() -> None:
        try:
            pace(3600)
        except StoppedError:
            raised.set()

    thread = threading.Thread(target=read)
    thread.start()
    pace.stop()
    thread.join()
    assert raised.is_set()
    with pytest.raises(StoppedError):
        pace(0)


def test_passing_failures_are_waited_out_and_lasting_ones_raised() -> None:
    waits: list[float] = []
    inner = MemoryStore()
    inner.put("a", b"x")
    store = PatientStore(
        ScriptedStore("TTO" + "T" * ATTEMPTS, inner), sleep=waits.append
    )
    assert store.get("a", max_size=1) == b"x"
    assert len(waits) == 2
    assert waits == sorted(waits)
    with pytest.raises(TransientStorageError):
        store.find("a")
    assert len(waits) == 4


def test_put_whose_answer_was_lost_finds_the_key_taken() -> None:
    inner = MemoryStore()
    store = PatientStore(ScriptedStore("X", inner), sleep=no_sleep)
    with pytest.raises(AlreadyExistsError):
        store.put("a", b"x")
    assert inner.get("a", max_size=1) == b"x"


@pytest.mark.parametrize("parallel", [1, 3])
def test_results_come_in_the_order_of_the_jobs(parallel: int) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken = number
            yield number

    stopped = threading.Event()
    seen = []
    for result in in_order(jobs(), str, parallel=parallel, stop=stopped.set):
        seen.append(result)
        assert taken - len(seen) < 16 * parallel
    assert seen == [str(number) for number in range(200)]
    assert not stopped.is_set()


def test_error_of_a_job_comes_in_its_turn_and_stops_the_others() -> None:
    stopped = threading.Event()
    results = in_order([1, 2, 0, 3], lambda n: 6 / n, parallel=2, stop=stopped.set)
    seen = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what came before counts
        for result in results:
            seen.append(result)  # noqa: PERF402 - see above
    assert seen == [6, 3]
    assert stopped.is_set()


def test_caller_who_leaves_stops_the_jobs_and_waits_for_them() -> None:
    began, stopped, ended = (threading.Event() for _ in range(3))

    def work(number: int) -> int:
        if number == 0:
            assert began.wait(30)
            return number
        began.set()
        assert stopped.wait(30)
        ended.set()
        return number

    with closing(in_order([0, 1], work, parallel=2, stop=stopped.set)) as results:
        assert next(results) == 0
    assert stopped.is_set()
    assert ended.is_set()
