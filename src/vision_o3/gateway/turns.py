"""Whose turn it is: an answer that has not begun goes before those that are long.

Bytes of downloads keep the event loop and the verifying threads as busy as they can.
Without an order, whoever asks then waits behind a piece of every download, again and
again, as a request is several steps. So a download that has begun waits before each
further piece while there are requests without an answer. Most are short; one that is
not, as it waits for the store, stops counting after ``LONGEST_S``, and where such ones
keep coming, each download still gets ``CREDIT`` pieces through in that time.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Scope

LONGEST_S = 0.5
CREDIT = 16
_KEY = "turns"


class Turns:
    """Counts requests that have no answer yet. For one event loop."""

    def __init__(self) -> None:
        self._waiting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @contextmanager
    def before_answer(self, scope: Scope) -> Iterator[Callable[[], None]]:
        """Count a request until the yielded function is called, or the block ends.

        Uploads are not counted: their answers come after all that they send.
        """
        scope.setdefault("state", {})[_KEY] = self
        if scope["method"] not in {"GET", "HEAD"}:
            yield lambda: None
            return
        self._waiting += 1
        self._quiet.clear()
        counted = True

        def begun() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._waiting -= 1
                if not self._waiting:
                    self._quiet.set()

        too_long = asyncio.get_running_loop().call_later(LONGEST_S, begun)
        try:
            yield begun
        finally:
            too_long.cancel()
            begun()

    async def quiet(self) -> bool:
        """Return when no request waits for its answer, or ``False`` after a while."""
        if self._waiting:
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._quiet.wait()
            except TimeoutError:
                return False
        return True


class Courtesy:
    """How one download lets others go first."""

    def __init__(self, scope: Scope) -> None:
        self._turns: Turns | None = scope.get("state", {}).get(_KEY)
        self._credit = 0

    async def give_way(self) -> None:
        """Let requests go first that have no answer yet, for a moment at most."""
        if self._credit:
            self._credit -= 1
        elif self._turns is not None and not await self._turns.quiet():
            self._credit = CREDIT
