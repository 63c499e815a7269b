"""How often a request to a store is tried again, and when."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from vision_o3.errors import TransientStorageError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

_LOG = structlog.get_logger(__name__)


class Tries:
    """The tries of one request within one time budget.

    Args:
        what: The request, for the log: ``put_object models/yolo/v1.onnx``.
        budget_s: Seconds from now after which no further try begins.
    """

    def __init__(self, what: str, budget_s: float) -> None:
        self.failed = 0
        """Tries that failed; each of them may have done its work."""
        self._what = what
        self._ends = time.monotonic() + budget_s

    def pause_after(self, error: TransientStorageError) -> float:
        """Return how many seconds to wait before the next try, at random.

        Exponential backoff with full jitter: many clients that failed together do not
        come back together.

        Raises:
            TransientStorageError: ``error``, as the budget is spent.
        """
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.failed)
        pause = random.uniform(longest / 10, longest)  # noqa: S311 - no secret
        self.failed += 1
        if time.monotonic() + pause > self._ends:
            raise error
        _LOG.warning(
            "store.request_repeated",
            request=self._what,
            reason=error.values.get("reason"),
            failed=self.failed,
            pause_s=round(pause, 3),
        )
        return pause

    def wait_after(self, error: TransientStorageError) -> None:
        """Wait before the next try.

        Raises:
            TransientStorageError: ``error``, as the budget is spent.
        """
        time.sleep(self.pause_after(error))
