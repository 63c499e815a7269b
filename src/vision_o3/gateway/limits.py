"""How much one user, or one address, may ask of this process.

Rates and transfers are counted by each process for itself: with ``--workers 4`` or
four gateways a user may do four times as much. What must hold for all gateways
together, failed attempts to sign in and quotas, is counted in the database
(``registry/signing_in.py``, ``registry/publishing.py``).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from vision_o3.errors import RateLimitedError, TooManyTransfersError
from vision_o3.registry.signing_in import network_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vision_o3.settings import Settings

_LONGEST_WAIT_S = 60
_TRANSFER_WAIT_S = 2


class Rate:
    """Lets each subject through so many times in a minute.

    Args:
        per_minute: 0 lets everything through.
        variable: The setting that says so, to name it in the error.
    """

    def __init__(self, per_minute: int, variable: str) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerMinute(max(1, per_minute))
        self._per_minute = per_minute
        self._variable = variable

    def pass_through(self, subject: str) -> None:
        """Count one passage.

        Raises:
            RateLimitedError: There were too many in the last minute.
        """
        if not self._per_minute or self._limiter.hit(self._item, subject):
            return
        reset_at = self._limiter.get_window_stats(self._item, subject).reset_time
        wait_s = min(max(1, math.ceil(reset_at - time.time())), _LONGEST_WAIT_S)
        raise RateLimitedError(
            f"More than {self._per_minute} requests in a minute. Wait {wait_s} s, or "
            f"ask the operator for more ({self._variable}).",
            limit=self._per_minute,
            retry_after_s=wait_s,
        )


class Transfers:
    """Lets each user have so many transfers under way. For one event loop.

    Args:
        most: 0 for any number.
        what: ``downloads`` or ``uploads``.
        variable: The setting that says so, to name it in the error.
    """

    def __init__(self, most: int, what: str, variable: str) -> None:
        self._most = most
        self._what = what
        self._variable = variable
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one_more(self, user_id: str) -> Iterator[None]:
        """Count a transfer until the block ends.

        Raises:
            TooManyTransfersError: There are enough already.
        """
        if self._most and self._under_way[user_id] >= self._most:
            raise TooManyTransfersError(
                f"You have {self._most} {self._what} under way at this gateway, and "
                "more are not accepted. Try again when one has ended, or ask the "
                f"operator for more ({self._variable}).",
                limit=self._most,
                retry_after_s=_TRANSFER_WAIT_S,
            )
        self._under_way[user_id] += 1
        try:
            yield
        finally:
            self._under_way[user_id] -= 1
            if not self._under_way[user_id]:
                del self._under_way[user_id]


class Limits:
    """All limits of one process."""

    def __init__(self, settings: Settings) -> None:
        self._requests = Rate(
            settings.max_requests_per_minute, "VISION_O3_MAX_REQUESTS_PER_MINUTE"
        )
        self._sign_ins = Rate(
            settings.max_sign_ins_per_minute, "VISION_O3_MAX_SIGN_INS_PER_MINUTE"
        )
        self.downloads = Transfers(
            settings.max_downloads_per_user,
            "downloads",
            "VISION_O3_MAX_DOWNLOADS_PER_USER",
        )
        self.uploads = Transfers(
            settings.max_uploads_per_user, "uploads", "VISION_O3_MAX_UPLOADS_PER_USER"
        )

    def count_request(self, user_id: str) -> None:
        """Count a request of a user.

        Raises:
            RateLimitedError: There were too many.
        """
        self._requests.pass_through(user_id)

    def count_sign_in(self, address: str | None) -> None:
        """Count an attempt to sign in, or another request without a user.

        Raises:
            RateLimitedError: There were too many from this address.
        """
        self._sign_ins.pass_through(network_of(address))
