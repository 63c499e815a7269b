"""What the registry tells of its work, for whoever counts and times it.

All that can be told is named here, so that what is made of it (labels of metrics, names
of spans) is a small, known set, whatever callers send.
"""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Event(StrEnum):
    """Something that happened; told with a number."""

    CACHE_HIT = "cache_hit"
    """A block that was asked for was there, or being read for another."""
    CACHE_MISS = "cache_miss"
    """A block is read from the store."""
    CACHE_PASSED = "cache_passed"
    """A block was read past the cache, as that had no room or time for it."""
    CACHE_DAMAGED = "cache_damaged"
    CACHE_WRITTEN_BYTES = "cache_written_bytes"
    CACHE_EVICTED_BYTES = "cache_evicted_bytes"
    VERSION_KEPT = "version_kept"
    """A question for a version was answered from memory."""
    VERSION_ASKED = "version_asked"
    """It was answered by the database."""
    LEASE_BEGUN = "lease_begun"
    LEASE_ENDED = "lease_ended"
    LEASE_LOST = "lease_lost"
    """A claim was not the writer's any more when it was to be renewed."""
    CLAIM_TAKEN_OVER = "claim_taken_over"
    LEAF_WRONG = "leaf_wrong"
    """Stored bytes were not what their CID names."""
    OBJECT_WRONG = "object_wrong"
    """They were not when they were read again either."""


class Step(StrEnum):
    """A step of publishing."""

    RECEIVE = "receive"
    INSPECT = "inspect"
    CLAIM = "claim"
    STORE = "store"
    PUBLISH = "publish"


class Watcher(Protocol):
    """Is told what happens. Safe in any thread; neither blocks nor raises."""

    def tell(self, event: Event, amount: int = 1) -> None:
        """Take note that something happened, so many times or to so many bytes."""
        ...

    def step(
        self, step: Step, *, cid: str | None = None, size: int | None = None
    ) -> AbstractContextManager[object]:
        """Take note of how long a block of code takes, and how it ends.

        Errors pass through.
        """
        ...


class Unwatched:
    """A watcher that takes no note of anything."""

    def tell(self, event: Event, amount: int = 1) -> None:
        """Do nothing."""

    def step(
        self,
        step: Step,  # noqa: ARG002 - the protocol's
        *,
        cid: str | None = None,  # noqa: ARG002
        size: int | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()


UNWATCHED = Unwatched()
