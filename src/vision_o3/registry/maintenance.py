"""Maintenance: remove what crashed or stalled writers left behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from vision_o3.db import queries
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.errors import VisionO3Error
from vision_o3.registry.claims import Claim, Claims, Timing
from vision_o3.registry.rebuilding import require_index
from vision_o3.registry.signing_in import remove_outdated
from vision_o3.registry.store_listing import record_key
from vision_o3.registry.watching import UNWATCHED
from vision_o3.storage.keys import parse_key

if TYPE_CHECKING:
    from vision_o3.db.engine import Database
    from vision_o3.registry.partial_uploads import PartialUploads
    from vision_o3.registry.purging import Forgetter
    from vision_o3.registry.spool import Spool
    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore

_BATCH = 100
_LONGEST_UPLOAD = timedelta(hours=6)
"""From the store's first byte to its last. Parts that are younger may be at work."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep removed, and what it could not."""

    claims: int = 0
    objects: int = 0
    spool_files: int = 0
    unfinished: int = 0
    """Objects that were being written in parts when their writer died."""
    partial_uploads: int = 0
    """Uploads in parts that nothing came for."""
    failures: int = 0


class Sweeper:
    """Removes expired claims with their objects, dead spool files, stray objects.

    Any number of sweepers may run at once, beside any number of writers.

    Args:
        forgetter: Drops what a gateway keeps of contents that were purged.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        spool: Spool | None,
        timing: Timing,
        partial_uploads: PartialUploads | None = None,
        watcher: Watcher = UNWATCHED,
        *,
        forgetter: Forgetter | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._spool = spool
        self._partial_uploads = partial_uploads
        self._forgetter = forgetter
        self._timing = timing
        self._claims = Claims(database, store, timing, watcher)

    def sweep(self) -> Swept:
        """Remove what expired claims and dead uploads left. Cheap; run it often.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        taken = failures = 0
        for collection in (MODELS, DATASETS):
            with self._database.read() as session:
                expired = [
                    Claim(collection, line.name, row.version, row.id, row.lease_token)
                    for line, row in queries.expired_claims(
                        session, collection, self._timing.clock(session), _BATCH
                    )
                    if row.lease_token is not None
                ]
            for claim in expired:
                try:
                    taken += self._claims.take_over(claim)
                except VisionO3Error as error:
                    failures += 1
                    _log.warning(
                        "sweep.failed",
                        collection=collection.name,
                        line=claim.name,
                        version=claim.number,
                        reason=error.code,
                    )
        with self._database.write() as session:
            remove_outdated(session)
        if self._forgetter is not None:
            self._forgetter.forget_purged()
        files = self._spool.remove_leftovers() if self._spool else 0
        partial = self._partial_uploads
        return Swept(
            claims=taken,
            spool_files=files,
            partial_uploads=partial.remove_expired() if partial else 0,
            failures=failures,
        )

    def sweep_strays(self, *, grace: timedelta = timedelta(days=1)) -> Swept:
        """Remove objects older than ``grace`` that no version names. Lists all keys.

        Such an object can only be the late write of a writer that had lost its claim.
        Each is removed under a lock on its line while no upload holds a claim. Parts of
        objects that were begun before, and never came to be, go too. What has a record
        beside it that no version names stays: the index may have lost that version.

        Raises:
            ConfigurationError: The index is empty and the store is not.
            DatabaseUnavailableError: The database cannot be reached.
            StorageError: The store failed.
        """
        require_index(self._database, self._store)
        removed = 0
        with self._database.read() as session:
            now = self._timing.clock(session)
        oldest_kept = now - grace
        for found in self._store.list():
            parsed = parse_key(found.key)
            if parsed is None or found.modified_at > oldest_kept:
                continue
            with self._database.read() as session:
                if queries.object_is_named(session, found.key):
                    continue
                record = record_key(parsed.collection, parsed.name, parsed.version)
                known = queries.object_is_named(session, record)
            if known and parsed.withdrawal:
                continue  # no row names it, and it is kept as long as its version
            if not known and self._store.find(record):
                continue  # a version, it seems: rebuild-index may bring it back
            collection = MODELS if parsed.collection == "models" else DATASETS
            with self._database.write() as session:
                # The lock on the line, made for this if need be, keeps writers out.
                line = queries.get_or_create_line(
                    session, collection, parsed.name, "", oldest_kept
                )
                claimed = queries.find_claim(session, collection, line) is not None
                if not claimed and not queries.object_is_named(session, found.key):
                    self._store.delete(found.key)
                    removed += 1
                    _log.info("object.swept", key=found.key)
                session.rollback()
        unfinished = self._store.remove_unfinished(
            "", before=min(oldest_kept, now - _LONGEST_UPLOAD)
        )
        return Swept(objects=removed, unfinished=unfinished)
