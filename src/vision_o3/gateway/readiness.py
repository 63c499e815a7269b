"""Whether the gateway can serve: what is looked at, and how often.

Anybody may ask, so what was found counts for a moment, and is looked for by one at a
time, however many ask.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from vision_o3.db.migrate import is_current
from vision_o3.errors import VisionO3Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from vision_o3.settings import Settings
    from vision_o3.storage.base import ObjectStore

KEPT_S = 1.0
OK = "ok"
NO_OBJECT = "health/ready"
"""A key that no version has; looking for it shows that the store answers."""
NOT_MIGRATED = "The database's schema is not this version's: vision-o3 admin migrate."
NO_ROOM = "The disk of the spool directory is too full to receive files."

_log = structlog.get_logger(__name__)


class ReadinessCheck:
    """Looks at database, store and disk. For one event loop.

    Args:
        clock: Tells monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._found: dict[str, str] = {}
        self._found_at: float | None = None
        self._looking: asyncio.Future[None] | None = None

    async def checks(self) -> dict[str, str]:
        """Return what was found less than ``KEPT_S`` ago: ``ok``, or what is wrong."""
        if self._found_at is None or self._clock() - self._found_at >= KEPT_S:
            if self._looking is None:
                self._looking = asyncio.ensure_future(self._look())
            # Also if who asked first leaves: the others wait for the answer.
            await asyncio.shield(self._looking)
        return self._found

    def forget(self) -> None:
        """Look anew when somebody asks next."""
        self._found_at = None

    async def _look(self) -> None:
        try:
            self._found = await anyio.to_thread.run_sync(self._look_at_all)
            self._found_at = self._clock()
        finally:
            self._looking = None

    def _look_at_all(self) -> dict[str, str]:
        return self._look_at_database() | self._look_at_store() | self._look_at_disk()

    def _look_at_database(self) -> dict[str, str]:
        try:
            current = is_current(self._settings.database_url.get_secret_value())
        except VisionO3Error:
            unknown = "unknown while the database cannot be used"
            return {"database": "The database cannot be used.", "migrations": unknown}
        return {"database": OK, "migrations": OK if current else NOT_MIGRATED}

    def _look_at_store(self) -> dict[str, str]:
        """Ask the store; what it answered is said in the log only."""
        try:
            self._store.find(NO_OBJECT)
        except VisionO3Error as error:
            _log.warning("store.unreachable", code=error.code, message=error.message)
            return {"store": "The object store cannot be reached."}
        return {"store": OK}

    def _look_at_disk(self) -> dict[str, str]:
        try:
            free = shutil.disk_usage(self._settings.spool_directory).free
        except OSError as error:
            _log.warning("spool.unusable", reason=error.strerror)
            return {"spool": "The spool directory cannot be used."}
        return {"spool": OK if free >= self._settings.min_free_bytes else NO_ROOM}
