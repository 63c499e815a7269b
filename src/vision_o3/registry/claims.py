"""Claims and leases: who may touch a line's objects.

A ``storing`` row is a claim on a line. Only its holder writes or deletes objects of
that version's keys, and looks at the lease before each. A process that dies stops
renewing; after the lease has run out, the next writer or the sweeper takes the claim
over, and a holder that wakes up too late finds its lease lost before it does harm.
"""

from __future__ import annotations

import contextvars
import secrets
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from vision_o3.db import queries
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.errors import (
    IntegrityError,
    LimitExceededError,
    ObjectNotFoundError,
    UploadInProgressError,
    VisionO3Error,
)
from vision_o3.registry.records import MAX_RECORD_SIZE, decode_record
from vision_o3.registry.store_listing import record_key
from vision_o3.registry.watching import UNWATCHED, Event
from vision_o3.storage.keys import version_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection
    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore

_EVER = datetime.max.replace(tzinfo=UTC)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long claims last and are waited for."""

    lease: timedelta = timedelta(seconds=60)
    claim_wait_s: float = 60.0
    clock: Callable[[Session], datetime] = field(default=queries.database_now)
    """Tells the time for leases: the database's, which all gateways share."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to store version ``number`` of a line, while the token is current."""

    collection: Collection
    name: str
    number: int
    version_id: UUID
    token: str


class Lease:
    """A claim kept alive. Made by ``Claims.hold``."""

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._held_until = time.monotonic() + duration_s
        self._lost = False

    @property
    def held(self) -> bool:
        """Whether the claim is surely still ours."""
        return not self._lost and time.monotonic() < self._held_until

    def check(self) -> None:
        """Raise unless the claim is surely still ours.

        Raises:
            UploadInProgressError: It is not: another writer may have the line.
        """
        if not self.held:
            raise UploadInProgressError(
                "Storing took so long that another upload to this line could take "
                "over. Nothing was published; send the file again.",
                retry_after_s=1,
            )

    def renewed(self, asked_at: float, *, granted: bool) -> None:
        """Take note of the database's answer to a renewal asked at a moment."""
        if granted:
            self._held_until = asked_at + self._duration_s
        else:
            self._lost = True


class Claims:
    """Holds, gives back and takes over claims. Safe in any thread and process."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        timing: Timing,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._database = database
        self._store = store
        self._timing = timing
        self._watcher = watcher

    @contextmanager
    def hold(self, claim: Claim) -> Iterator[Lease]:
        """Yield the claim's lease, renewed by a thread until the block ends."""
        lease = Lease(self._timing.lease.total_seconds())
        ended = threading.Event()
        # In the request's context, so that the thread's log lines name it.
        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._keep, claim, lease, ended),
            name="lease",
            daemon=True,
        )
        thread.start()
        self._watcher.tell(Event.LEASE_BEGUN)
        try:
            yield lease
        finally:
            ended.set()
            thread.join()
            self._watcher.tell(Event.LEASE_ENDED)

    def confirm(self, claim: Claim, lease: Lease) -> None:
        """Ask the database whether a held claim is still ours; before any deletion.

        It is not if it was published after all, by a commit whose answer was lost.

        Raises:
            UploadInProgressError: It is not ours any more.
        """
        self._renew(claim, lease)
        lease.check()

    def give_back(self, claim: Claim, lease: Lease) -> None:
        """Delete what was stored under a held claim, then the claim itself.

        Raises:
            UploadInProgressError: The lease was lost; what is left is the next
                writer's or the sweeper's to remove.
            StorageError: The store failed; likewise.
        """
        self.confirm(claim, lease)
        if not self.holds_another(claim):
            prefix = _prefix_of(claim)
            # First what is still being written, so that it cannot come to be later.
            self._store.remove_unfinished(prefix, before=_EVER)
            for found in list(self._store.list(prefix)):
                lease.check()
                self._store.delete(found.key)
        with self._database.write() as session:
            queries.release_claim(
                session, claim.collection, claim.version_id, claim.token
            )

    def holds_another(self, claim: Claim) -> bool:
        """Say whether what lies under a claim's keys is no leftover, but a version.

        It is one that the index lacks, if a whole version was published under this
        number with another id: then the index is older than the store. Or it lends an
        object to a published version of another line. Nothing of it may be touched.

        Raises:
            StorageError: The store failed.
            DatabaseUnavailableError: The database did not answer.
        """
        found = {each.key: each.size for each in self._store.list(_prefix_of(claim))}
        if not found:
            return False
        with self._database.read() as session:
            for collection in (MODELS, DATASETS):
                for key in found:
                    if queries.versions_naming(session, collection, key, 1):
                        return True
        return self._is_unknown_version(claim, found)

    def _is_unknown_version(self, claim: Claim, found: dict[str, int]) -> bool:
        """Say whether objects are a whole version, of another id than the claim's."""
        key = record_key(claim.collection.name, claim.name, claim.number)
        if key not in found:
            return False
        try:
            content = self._store.get(key, max_size=MAX_RECORD_SIZE)
            version = decode_record(content, key).version
        except (IntegrityError, LimitExceededError):
            return True  # no writer leaves half a record
        except ObjectNotFoundError:
            return False
        if version.is_purged:  # nothing but its record is there, and that is all of it
            return version.id != str(claim.version_id)
        size = found.get(version.object_key)
        if size is None:
            elsewhere = self._store.find(version.object_key)
            size = None if elsewhere is None else elsewhere.size
        is_whole = size == version.file_size  # else a late write, alone
        return is_whole and version.id != str(claim.version_id)

    def take_over(self, expired: Claim) -> bool:
        """Remove an expired claim and its objects; false if another was faster.

        Raises:
            UploadInProgressError, StorageError: As for ``give_back``.
        """
        token = secrets.token_hex(16)
        with self._database.write() as session:
            now = self._timing.clock(session)
            taken = queries.take_over_claim(
                session,
                expired.collection,
                expired.version_id,
                expired.token,
                token,
                now + self._timing.lease,
                now,
            )
        if not taken:
            return False
        ours = Claim(
            expired.collection, expired.name, expired.number, expired.version_id, token
        )
        self._watcher.tell(Event.CLAIM_TAKEN_OVER)
        with self.hold(ours) as lease:
            self.give_back(ours, lease)
        _log.info(
            "claim.taken_over",
            collection=ours.collection.name,
            line=ours.name,
            version=ours.number,
        )
        return True

    def _keep(self, claim: Claim, lease: Lease, ended: threading.Event) -> None:
        while not ended.wait(self._timing.lease.total_seconds() / 3):
            try:
                self._renew(claim, lease)
            except VisionO3Error as error:
                _log.warning("lease.renewal_failed", reason=error.code)

    def _renew(self, claim: Claim, lease: Lease) -> None:
        asked_at = time.monotonic()
        with self._database.write() as session:
            granted = queries.renew_lease(
                session,
                claim.collection,
                claim.version_id,
                claim.token,
                self._timing.clock(session) + self._timing.lease,
            )
        lease.renewed(asked_at, granted=granted)
        if not granted:
            self._watcher.tell(Event.LEASE_LOST)


def _prefix_of(claim: Claim) -> str:
    return version_prefix(claim.collection.name, claim.name, claim.number)
