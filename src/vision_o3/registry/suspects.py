"""Objects that the store answered wrongly, noted for ``admin scrub --marked``."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from vision_o3.db import queries
from vision_o3.errors import VisionO3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.engine import Database
    from vision_o3.db.models import SuspectRow

_QUIET_S = 60.0
"""Within which an object is noted once by a process, however often it is asked for."""
_REMEMBERED = 10_000
"""Objects whose noting is remembered, to keep quiet about them."""
_PAGE = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Suspect:
    """An object that was answered wrongly, ``times`` as far as it was noted."""

    key: str
    cid: CID
    reason: str
    """The code of the error that was seen last."""
    first_seen_at: datetime
    last_seen_at: datetime
    times: int


class Suspects:
    """Keeps, in the database, which objects were answered wrongly. Safe in any thread.

    Args:
        database: Where.
        clock: Tells the time that is written.
        monotonic: Tells how much time has passed, in seconds.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[Session], datetime] = queries.database_now,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._marked: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def mark(self, key: str, cid: CID, reason: str) -> None:
        """Note that an object was answered wrongly. Never raises.

        At most one write a minute for each object: the first is what matters. If the
        database fails, that is logged, and the object noted when it is next seen after
        that minute.

        Args:
            key: The object.
            cid: What names it, or the artifact that it belongs to.
            reason: The code of the error.
        """
        if not self._is_due(key):
            return
        try:
            with self._database.write() as session:
                queries.mark_suspect(session, key, cid, reason, self._clock(session))
        except (VisionO3Error, SQLAlchemyError) as error:
            _log.error(
                "suspect.not_noted",
                key=key,
                cid=str(cid),
                reason=reason,
                failure=getattr(error, "code", None) or type(error).__name__,
            )
            return
        _log.warning("suspect.noted", key=key, cid=str(cid), reason=reason)

    def clear(self, key: str, *, times: int | None = None) -> bool:
        """Forget an object that was found to be right; say whether it was noted.

        With ``times`` it stays if it was noted again since it had been noted so often.

        Raises:
            DatabaseUnavailableError: The database did not answer.
        """
        with self._database.write() as session:
            cleared = queries.clear_suspect(session, key, times)
        if cleared:
            with self._lock:
                self._marked.pop(key, None)
        return cleared

    def find(self, key: str) -> Suspect | None:
        """Return what is noted of an object.

        Raises:
            DatabaseUnavailableError: The database did not answer.
        """
        with self._database.read() as session:
            row = queries.find_suspect(session, key)
        return None if row is None else _suspect(row)

    def list(self) -> Iterator[Suspect]:
        """Yield all that is noted, by key. Reads page by page, each in a transaction.

        Raises:
            DatabaseUnavailableError: The database did not answer.
        """
        after = ""
        while True:
            with self._database.read() as session:
                rows = queries.list_suspects(session, after, _PAGE)
            yield from map(_suspect, rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].object_key

    def _is_due(self, key: str) -> bool:
        """Say whether an object is to be noted now, and remember that it was."""
        now = self._monotonic()
        with self._lock:
            last = self._marked.get(key)
            if last is not None and now - last < _QUIET_S:
                return False
            self._marked[key] = now
            self._marked.move_to_end(key)
            if len(self._marked) > _REMEMBERED:
                self._marked.popitem(last=False)
            return True


def _suspect(row: SuspectRow) -> Suspect:
    return Suspect(
        row.object_key,
        row.cid,
        row.reason,
        row.first_seen_at,
        row.last_seen_at,
        row.times,
    )
