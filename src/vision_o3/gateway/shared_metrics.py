"""Metrics of several processes of one ``vision-o3 serve``, told as those of one.

Each process keeps its numbers in files of a directory that all share (the "multiprocess
mode" of ``prometheus_client``). Whichever is scraped reads the files of all. A process
that starts moves what dead ones have counted into the files of process 0, which there
is not: no counter ever goes back, and a process that dies again and again leaves no
heap of files.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    generate_latest,
    mmap_dict,
    multiprocess,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# They have no types.
_MmapedDict: Any = mmap_dict.MmapedDict
_MultiProcessCollector: Any = multiprocess.MultiProcessCollector
_mark_process_dead: Any = multiprocess.mark_process_dead
_NOBODY = 0
_LOCK = "lock"


class SharedMetrics:
    """The directory that the processes of one gateway share.

    Args:
        directory: One that is there, and nobody else's. The environment names it to
            ``prometheus_client`` (``settings.share_metrics``).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Let nobody read while this process makes its files.

        First takes over what processes have left that are dead.
        """
        with self._locked(fcntl.LOCK_EX):
            self._forget_gauges(os.getpid())  # of a dead one that had the same number
            for pid in self._all() - self._alive():
                self._forget_gauges(pid)
                for path in self._directory.glob(f"*_{pid}.db"):
                    self._take_over(path)
            yield

    def alive(self) -> tuple[int, ...]:
        """Return the processes that share the directory and live."""
        return tuple(sorted(self._alive()))

    def text(self) -> bytes:
        """Return the numbers of all processes together, in Prometheus's text format."""
        registry = CollectorRegistry()
        _MultiProcessCollector(registry, str(self._directory))
        with self._locked(fcntl.LOCK_EX):
            for pid in self._all() - self._alive():
                self._forget_gauges(pid)
            return generate_latest(registry)

    def _all(self) -> set[int]:
        names = (path.stem for path in self._directory.glob("*_*.db"))
        return {int(name.rpartition("_")[2]) for name in names} - {_NOBODY}

    def _alive(self) -> set[int]:
        return {pid for pid in self._all() if _lives(pid)}

    def _forget_gauges(self, pid: int) -> None:
        _mark_process_dead(pid, str(self._directory))

    def _take_over(self, path: Path) -> None:
        """Add a dead process's numbers to those of nobody, and remove its file."""
        kind = path.stem.rpartition("_")[0]
        sums = _MmapedDict(str(path.with_name(f"{kind}_{_NOBODY}.db")))
        try:
            for key, value, *_ in _MmapedDict.read_all_values_from_file(str(path)):
                sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
        finally:
            sums.close()
        path.unlink()

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, or another user's by now
        return False
    return True
