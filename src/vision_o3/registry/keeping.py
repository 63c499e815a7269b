"""Keep what was read and verified, for the next request. Bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from vision_o3.content.cid import CID

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by the CID that they were read from. Safe in any thread.

    Args:
        capacity: What all values weigh at most, but for the one kept last.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[CID, tuple[T, int]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def find(self, cid: CID) -> T | None:
        """Return the value, which counts as used now, or ``None``."""
        with self._lock:
            found = self._values.get(cid)
            if found is None:
                return None
            self._values.move_to_end(cid)
            return found[0]

    def drop(self, cid: CID) -> None:
        """Forget a value, if there is one."""
        with self._lock:
            _, weight = self._values.pop(cid, (None, 0))
            self._weight -= weight

    def keep(self, cid: CID, value: T, weight: int) -> None:
        """Keep a value; those used least recently go where there is no room."""
        with self._lock:
            if cid in self._values:
                return
            self._values[cid] = value, weight
            self._weight += weight
            while self._weight > self._capacity and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self._weight -= dropped
