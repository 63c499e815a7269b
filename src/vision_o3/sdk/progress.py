"""One line on a terminal that says how far a transfer is."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Callable, Deque, TextIO, Tuple

if TYPE_CHECKING:
    from typing import Optional

_REDRAW_S = 0.1
_RECENT_S = 5.0
"""The rate is that of so many seconds."""
_UNIT = 1024
_CLEAR_TO_END = "\x1b[K"
_DEFAULT_WIDTH = 80
_SHORTEST_BAR = 10
_LONGEST_BAR = 40


class ProgressLine:
    """A progress callback that redraws a line; gone at the end of the transfer.

    Says nothing where the stream is not a terminal. Safe for several threads.

    Args:
        stream: A terminal.
        label: What is done, before the rest.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self,
        stream: TextIO,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._label = label
        self._clock = clock
        self._shows = stream.isatty()
        self._recent: Deque[Tuple[float, int]] = deque()
        self._drawn: Optional[float] = None
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are there."""
        if not self._shows:
            return
        with self._lock:
            now = self._clock()
            if self._recent and done < self._recent[-1][1]:  # another transfer
                self._recent.clear()
            if done >= total:
                self._clear()
            elif self._drawn is None or now - self._drawn >= _REDRAW_S:
                self._drawn = now
                self._note(now, done)
                self._draw(self._line(done, total, _width(self._stream) - 1))

    def clear(self) -> None:
        """Remove the line, if there is one."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._recent.clear()
        if self._drawn is not None:
            self._drawn = None
            self._draw("")

    def _draw(self, line: str) -> None:
        self._stream.write(f"\r{line}{_CLEAR_TO_END}")
        self._stream.flush()

    def _note(self, now: float, done: int) -> None:
        self._recent.append((now, done))
        while now - self._recent[0][0] > _RECENT_S and len(self._recent) > 2:  # noqa: PLR2004 - a rate needs two
            self._recent.popleft()

    def _rate(self) -> float:
        """Return bytes a second, lately; zero if that is not known."""
        (first_at, first), (last_at, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def _line(self, done: int, total: int, room: int) -> str:
        """Return as much as there is room for, what matters most first."""
        rate = self._rate()
        percent = f"{100 * done // total:3d} %"
        parts = [f"{in_units(done)} of {in_units(total)}"]
        if rate:
            parts += [f"{in_units(rate)}/s", f"{in_time((total - done) / rate)} left"]
        line = f"{self._label} {percent}" if self._label else percent
        for part in parts:
            if len(line) + 2 + len(part) > room:
                return line[:room]
            line += f"  {part}"
        bar = min(room - len(line) - 2, _LONGEST_BAR)
        if bar >= _SHORTEST_BAR:
            full = (bar - 2) * done // total
            drawn = f"[{'#' * full}{'.' * (bar - 2 - full)}]"
            line = line.replace(percent, f"{drawn} {percent}", 1)
        return line


def in_units(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if size < _UNIT:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _UNIT
    return f"{size:.1f} GiB"


def in_time(seconds: float) -> str:
    """Return a duration as people read it: ``9 s``, ``1:05``, ``2:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def _width(stream: TextIO) -> int:
    """Return the columns of a terminal, as they are now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH
    except (OSError, ValueError):  # not one that can tell
        return _DEFAULT_WIDTH
