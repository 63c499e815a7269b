"""What a token's user may do now, looked up for every request.

Tokens say what they were issued for. Whether that still holds, the database says: a
user may have been disabled, a secret removed, a token revoked. What it said is kept in
memory for a moment, and dropped as soon as a change is told (``db/changes.py``): on
SQLite that is seen at once, on PostgreSQL when the message comes, and within
``UNTOLD_S`` where none comes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vision_o3.db import accounts as rows
from vision_o3.registry.permissions import permissions_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vision_o3.db.engine import Database

TOLD_S = 30.0
"""Seconds that an answer is kept while changes are told."""
UNTOLD_S = 2.0
"""While they are not."""
_CAPACITY = 20_000
"""Users."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a user."""

    enabled: bool
    granted: frozenset[str] = frozenset()
    generation: int = 0
    secret_ids: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    """Ids of tokens."""
    max_versions: int | None = None
    max_bytes: int | None = None


NOBODY = Standing(enabled=False)


@dataclass(frozen=True, slots=True)
class _Kept:
    standing: Standing
    until: float


class Standings:
    """Tells how it stands with users. Safe in any thread.

    Args:
        clock: Tells monotonic seconds.
        commits: As for ``MetadataCache``; without it, changes are told by calls.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        commits: Callable[[], int] | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._commits = commits
        self._seen_commits = -1
        self._told = commits is not None
        self._changes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, user_id: str) -> Standing | None:
        """Return what is known, without blocking; ``None``: ask ``look_up``."""
        with self._lock:
            self._look_for_commits()
            kept = self._kept.get(user_id)
            if kept is None or self._clock() >= kept.until:
                return None
            return kept.standing

    def look_up(self, user_id: str) -> Standing:
        """Ask the database. Blocks.

        Raises:
            DatabaseUnavailableError: It did not answer: nobody is let in unseen.
        """
        with self._lock:
            self._look_for_commits()
            seen, asked_at = self._changes, self._clock()
        standing = self._read(user_id)
        with self._lock:
            self._look_for_commits()
            if self._changes == seen:
                keep_s = TOLD_S if self._told else UNTOLD_S
                self._kept[user_id] = _Kept(standing, asked_at + keep_s)
                self._kept.move_to_end(user_id)
                while len(self._kept) > _CAPACITY:
                    self._kept.popitem(last=False)
        return standing

    def changed(self, user_id: str) -> None:
        """Take note that a user was, or may have been, changed."""
        with self._lock:
            self._changes += 1
            self._kept.pop(user_id, None)

    def reset(self, told: bool) -> None:  # noqa: FBT001 - as a listener calls it
        """Forget everything; from now on, changes by others are told, or are not."""
        with self._lock:
            self._told = told
            self._changes += 1
            self._kept.clear()

    def _look_for_commits(self) -> None:
        if self._commits is None:
            return
        number = self._commits()
        if number != self._seen_commits:
            self._seen_commits = number
            self._changes += 1
            self._kept.clear()

    def _read(self, user_id: str) -> Standing:
        with self._database.read() as session:
            row = rows.find_user(session, user_id)
            if row is None:
                return NOBODY
            return Standing(
                row.disabled_at is None,
                permissions_of(row.roles, row.permissions),
                row.token_generation,
                frozenset(each.id for each in rows.list_secrets(session, [user_id])),
                rows.revoked_tokens(session, user_id),
                row.max_versions,
                row.max_bytes,
            )
