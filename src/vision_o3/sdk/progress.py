"""One line on a terminal that says how far a transfer is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable, TextIO

if TYPE_CHECKING:
    from typing import Optional

_REDRAW_S = 0.1
_UNIT = 1024
_CLEAR_TO_END = "\x1b[K"


class ProgressLine:
    """A progress callback that redraws a line; gone at the end of the transfer.

    Args:
        stream: A terminal.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._started: Optional[float] = None
        self._first = 0
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are there."""
        now = self._clock()
        if self._started is None or done < self._first:
            self._started, self._first, self._drawn = now, done, now - _REDRAW_S
        if done >= total:
            self._started = None
            self._stream.write(f"\r{_CLEAR_TO_END}")
        elif now - self._drawn < _REDRAW_S:
            return
        else:
            self._drawn = now
            self._draw(done, total, now - self._started)
        self._stream.flush()

    def _draw(self, done: int, total: int, took_s: float) -> None:
        rate = (done - self._first) / took_s if took_s > 0 else 0.0
        left = f"  {(total - done) / rate:.0f} s left" if rate else ""
        self._stream.write(
            f"\r{100 * done // total:3d} %  {in_units(done)} of {in_units(total)}"
            f"  {in_units(rate)}/s{left}{_CLEAR_TO_END}"
        )


def in_units(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if size < _UNIT:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _UNIT
    return f"{size:.1f} GiB"
