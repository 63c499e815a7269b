from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from vision_o3.gateway.stopping import Stopping


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Return the signals that whoever was there before has handled."""
    seen: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [
        signal.signal(number, lambda got, _: seen.append(got)) for number in numbers
    ]
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noticed_and_handled_as_before(
    handled: list[int], number: signal.Signals
) -> None:
    stopping = Stopping()
    seen = []
    with stopping.noticed():
        seen.append(stopping.begun)
        signal.raise_signal(number)
        seen.append(stopping.begun)
    assert seen == [False, True]
    assert handled == [number]


def test_handlers_are_put_back(handled: list[int]) -> None:
    stopping = Stopping()
    with stopping.noticed():
        pass
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]
    assert not stopping.begun


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stopping = Stopping()
        with stopping.noticed():
            signal.raise_signal(signal.SIGTERM)
        assert not stopping.begun
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_thread_that_gets_no_signals_is_left_alone() -> None:
    ended = threading.Event()

    def run() -> None:
        with Stopping().noticed():
            ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended.is_set()
