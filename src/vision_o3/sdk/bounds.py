"""How long one call may go on, and how it is stopped from outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Optional

from vision_o3.errors import CancelledError, DeadlineExceededError

if TYPE_CHECKING:
    from typing import Protocol

    from vision_o3.sdk.retry import Clock

    class Flag(Protocol):
        """What says that a call is to end, such as a ``threading.Event``."""

        def is_set(self) -> bool:
            """Whether it is."""
            ...


_LOOK_EVERY_S = 0.2
"""Between two looks at whether a waiting call was cancelled."""
_SHORTEST_S = 0.001
"""What is not worth waiting for."""


class AnyOf:
    """A flag that is set when one of others is."""

    def __init__(self, *flags: Optional[Flag]) -> None:
        self._flags = [flag for flag in flags if flag is not None]

    def is_set(self) -> bool:
        """Whether one of them is."""
        return any(flag.is_set() for flag in self._flags)


class Bounds:
    """The end of one call: a point in time, or a flag that others set.

    Args:
        clock: Default: the ``time`` module.
        deadline_s: Seconds from now; default: none.
        cancelled: Looked at now and then; default: nothing ends the call.
    """

    def __init__(
        self,
        clock: Optional[Clock] = None,
        deadline_s: Optional[float] = None,
        cancelled: Optional[Flag] = None,
    ) -> None:
        self._clock = clock or time
        self._deadline_s = deadline_s
        self._cancelled = cancelled
        self._ends_at = (
            float("inf") if deadline_s is None else self._clock.monotonic() + deadline_s
        )

    def check(self) -> None:
        """Return if the call may go on.

        Raises:
            CancelledError: It was cancelled.
            DeadlineExceededError: Its time is over.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise CancelledError(
                "The call was cancelled. What had come by then is kept: "
                "the next one goes on from there."
            )
        if self._clock.monotonic() >= self._ends_at:
            raise DeadlineExceededError(
                f"The call was not done within its {self._deadline_s:g} s. What had "
                "come by then is kept: the next one goes on from there.",
                deadline_s=self._deadline_s,
            )

    def also(self, ended: Flag) -> Bounds:
        """Return these bounds, with one more flag that ends the call."""
        bounds = Bounds(self._clock, None, AnyOf(self._cancelled, ended))
        bounds._deadline_s, bounds._ends_at = self._deadline_s, self._ends_at
        return bounds

    def at_most(self, seconds: float) -> Bounds:
        """Return these bounds with an end that is no later than so many seconds on."""
        bounds = Bounds(self._clock, min(seconds, self.left_s()), self._cancelled)
        bounds._ends_at = min(bounds._ends_at, self._ends_at)
        return bounds

    def left_s(self) -> float:
        """Return the seconds until the deadline; infinite without one."""
        return self._ends_at - self._clock.monotonic()

    def within(self, seconds: float) -> float:
        """Return how long to wait for something before looking again: at most that."""
        left = self.left_s()
        if self._cancelled is not None:
            left = min(left, _LOOK_EVERY_S)
        return max(_SHORTEST_S, min(seconds, left))

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            CancelledError, DeadlineExceededError: The call ended meanwhile.
        """
        until = self._clock.monotonic() + seconds
        self.check()
        while True:
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.sleep(self.within(left))
            self.check()
