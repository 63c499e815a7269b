"""When to try again, and how long to wait before."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Optional, Protocol, TypeVar

from vision_o3.errors import VisionO3Error
from vision_o3.sdk.bounds import Bounds
from vision_o3.sdk.logs import logger

_T = TypeVar("_T")
_log = logger(__name__)


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        ...

    def time(self) -> float:
        """Return seconds since 1970, UTC."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded in attempts and time.

    The wait before attempt n + 1 is random between zero and ``base_s`` · 2ⁿ⁻¹, at most
    ``longest_s``; a ``Retry-After`` is honoured on top of that.

    Attributes:
        attempts: Attempts without progress, the first included.
        total_s: Seconds without progress after which no new attempt starts.
        base_s: Seconds.
        longest_s: Seconds.
    """

    attempts: int = 5
    total_s: float = 120.0
    base_s: float = 0.5
    longest_s: float = 20.0

    def wait_s(self, failures: int, chance: float, error: VisionO3Error) -> float:
        """Return the seconds to wait after so many failures in a row.

        Args:
            failures: From 1 up.
            chance: Random, in [0, 1).
            error: The last one; may say ``retry_after_s``.
        """
        doubled: int = 2 ** min(failures - 1, 32)
        longest_s = min(self.longest_s, self.base_s * doubled)
        asked_s: float = error.values.get("retry_after_s", 0)
        return longest_s * chance + asked_s


class Attempts:
    """Counts the attempts of one piece of work.

    Args:
        policy: The bounds.
        clock: Default: the ``time`` module.
        random: Returns a number in [0, 1). Default: that of ``random``.
        bounds: Of the call. Default: none.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Optional[Clock] = None,
        random: Optional[Callable[[], float]] = None,
        bounds: Optional[Bounds] = None,
    ) -> None:
        self._policy = policy
        self._clock = clock or time
        self._random = random or chance
        self._bounds = bounds or Bounds(self._clock)
        self.progressed()

    def progressed(self) -> None:
        """Start counting anew."""
        self._failures = 0
        self._deadline = self._clock.monotonic() + self._policy.total_s

    def failed(self, error: VisionO3Error) -> None:
        """Return when it is time to try again.

        Raises:
            VisionO3Error: The error itself, if it cannot pass or bounds are reached.
        """
        policy = self._policy
        self._failures += 1
        if not error.retryable or self._failures >= policy.attempts:
            raise error
        wait_s = policy.wait_s(self._failures, self._random(), error)
        left_s = self._deadline - self._clock.monotonic()
        if wait_s > min(left_s, self._bounds.left_s()):
            raise error
        _log.warning(
            "request.retried: %s Trying again in %.1f s.",
            error.message,
            wait_s,
            extra={"code": error.code, "wait_s": wait_s},
        )
        self._bounds.sleep(wait_s)

    def call(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` returns, after as many attempts as it takes.

        Raises:
            VisionO3Error: The last error, when no attempt is left.
        """
        while True:
            try:
                return work()
            except VisionO3Error as error:
                self.failed(error)


def chance() -> float:
    """Return a random number in [0, 1)."""
    import random  # noqa: PLC0415 - only now: most calls need no retry

    return random.random()  # noqa: S311 - spreads clients in time, no secret
