"""How long walks over a store are done: at a rate, patiently, several at once."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vision_o3.errors import TransientStorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from vision_o3.storage.base import ObjectMeta, ObjectStore

T = TypeVar("T")
R = TypeVar("R")

_BURST_S = 1.0
"""What was not read in this time may be caught up on."""
ATTEMPTS = 3
"""Of a call. The stores that are far away try again by themselves, for a minute."""
_FIRST_PAUSE_S = 0.5
_AHEAD = 16
"""Jobs for each thread that may be done or waiting behind the one awaited."""


class StoppedError(Exception):
    """The walk was stopped. Stays within the walk."""


class Pace:
    """Counts what is read, and holds it to a rate. Safe in any thread.

    Args:
        bytes_per_s: At most so many, on average over a second; 0: as fast as it goes.
        clock: Returns seconds that only grow.
        sleep: Waits; by default so that ``stop`` ends it.
    """

    def __init__(
        self,
        bytes_per_s: float = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._lock = threading.Lock()
        self._due = clock()
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes that were read so far."""
        return self._total

    def __call__(self, size: int) -> None:
        """Note that ``size`` bytes were read; return when more may be.

        Raises:
            StoppedError: Nothing more is to be read.
        """
        wait_s = 0.0
        with self._lock:
            self._total += size
            if self._bytes_per_s:
                now = self._clock()
                self._due = max(self._due, now - _BURST_S) + size / self._bytes_per_s
                wait_s = self._due - now
        if wait_s > 0:
            self._sleep(wait_s)
        if self._stopped.is_set():
            raise StoppedError

    def stop(self) -> None:
        """Let all who read raise ``StoppedError`` when they next come by."""
        self._stopped.set()


class PatientStore:
    """A store's blocking calls, each begun anew while its failure may pass.

    A call whose answer was lost is done again: what was stored by it is then
    ``AlreadyExistsError``, so whoever puts looks at what is there.
    """

    def __init__(
        self, store: ObjectStore, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.store = store
        self._sleep = sleep

    def find(self, key: str) -> ObjectMeta | None:
        """See ``ObjectStore.find``."""
        return self.patiently(lambda: self.store.find(key))

    def get(self, key: str, *, max_size: int) -> bytes:
        """See ``ObjectStore.get``."""
        return self.patiently(lambda: self.store.get(key, max_size=max_size))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        return self.patiently(lambda: self.store.get_range(key, start, end))

    def put(self, key: str, content: bytes) -> None:
        """See ``ObjectStore.put``."""
        self.patiently(lambda: self.store.put(key, content))

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore.put_file``."""
        self.patiently(lambda: self.store.put_file(key, path))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        self.patiently(lambda: self.store.delete(key))

    def patiently(self, call: Callable[[], T]) -> T:
        """Return what a call of the store returns, begun anew while that may help."""
        for attempt in range(1, ATTEMPTS):
            try:
                return call()
            except TransientStorageError:
                longest = _FIRST_PAUSE_S * 2 ** (attempt - 1)
                self._sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - jitter only
        return call()


def in_order(
    jobs: Iterable[T],
    work: Callable[[T], R],
    *,
    parallel: int,
    stop: Callable[[], None],
) -> Generator[R]:
    """Yield the result of each job, in the jobs' order, ``parallel`` at work at once.

    Jobs begin in their order, and are taken no further ahead than ``_AHEAD`` for each
    thread. When this ends early, by an error or because the caller closes it, ``stop``
    is called and the jobs at work are waited for.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="walk")
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) >= _AHEAD * parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
