"""Rebuild the index: from the records in the store to rows in the database.

One listing says which objects there are. Then the records are read, many at a time,
in the order of lines and versions, and what the index lacks is added in batches, each
one short transaction. Nothing that the index has is ever changed, but for decisions on
a version's use that it lacks, so that this may be broken off anywhere, run again, and
run while gateways serve (ADR 12, ADR 16).
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from vision_o3.db import rebuild as queries
from vision_o3.db.models import PUBLISHED, PURGED
from vision_o3.errors import (
    ConfigurationError,
    MalformedBlockError,
    TransientStorageError,
    VisionO3Error,
)
from vision_o3.registry.audit import OPERATOR, record_event
from vision_o3.registry.filling import AGAIN, COLLECTIONS, Filling, Problem, Read
from vision_o3.registry.records import MAX_RECORD_SIZE, decode_record, reduced
from vision_o3.registry.store_listing import StoreListing, record_key
from vision_o3.registry.withdrawal_records import (
    MAX_WITHDRAWAL_SIZE,
    decode_decision,
)
from vision_o3.storage.keys import parse_key, withdrawal_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from datetime import datetime

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.registry.claims import Timing
    from vision_o3.registry.filling import Stopped
    from vision_o3.registry.records import Record
    from vision_o3.registry.store_listing import RecordObject
    from vision_o3.storage.base import ObjectStore

READERS = 16
"""Records read at the same time."""
BATCH = 500
"""Versions added in one transaction."""
_BATCH_BYTES = 16 << 20
_AHEAD = 8 * READERS
_AHEAD_BYTES = 32 << 20
_MOST_FAILURES = 2 * READERS
"""Reads that fail one after the other before the store is taken to be down."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuilding came to."""

    added: int
    """Versions that the index lacked."""
    present: int
    """Versions that it had."""
    unreadable: tuple[Problem, ...]
    withdrawn: int = 0
    """Versions that it had, and on whose use was decided since."""


class Rebuilder:
    """Fills the index from the store. Several may run at once, beside gateways.

    Args:
        database: Of this version's schema; empty or not.
        store: Where the records are.
        timing: Tells by which clock leases run out.
        batch: Versions added in one transaction.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        timing: Timing,
        *,
        batch: int = BATCH,
    ) -> None:
        self._database = database
        self._store = store
        self._timing = timing
        self._batch = batch

    def rebuild(self, progress: Callable[[int, int], None] | None = None) -> Rebuilt:
        """Add the versions whose records are in the store and that the index lacks.

        A version is added when all its objects are there, and all versions before it.
        Memory grows with the number of problems, not with that of versions.

        Args:
            progress: Called with the number of records seen to, and that of all.

        Raises:
            StorageError: The store cannot be listed, or answers no more. What was
                added stays; run it again.
            DatabaseUnavailableError, ConfigurationError: As for ``Database.write``.
        """
        added = present = withdrawn = done = 0
        problems: list[Problem] = []
        stopped: Stopped | None = None
        with ExitStack() as opened:
            listing = opened.enter_context(StoreListing(self._store))
            readers = ThreadPoolExecutor(READERS, thread_name_prefix="records")
            opened.callback(readers.shutdown, cancel_futures=True)
            find = partial(readers.map, self._store.find)
            for batch in _batches(self._read_all(listing, readers), self._batch):
                with self._database.write() as session:
                    now = self._timing.clock(session)
                    filling = Filling(session, batch, listing, now, stopped)
                    filling.fill(find)
                    _record(session, batch[0].at.collection, filling, now)
                added += filling.added
                present += filling.present
                withdrawn += filling.withdrawn
                problems += filling.problems
                stopped = filling.stopped.get(batch[-1].at.name)
                done += len(batch)
                if progress is not None:
                    progress(done, listing.records)
            known = {problem.key for problem in problems}
            problems += self._unrecorded(listing, known)
        return Rebuilt(added, present, tuple(problems), withdrawn)

    def _read_all(
        self, listing: StoreListing, readers: ThreadPoolExecutor
    ) -> Iterator[Read]:
        """Yield all records in order, read ahead within bounds.

        Raises:
            TransientStorageError: The store answers no more.
        """
        waiting: deque[tuple[int, Future[Read]]] = deque()
        ahead = failures = 0
        for at in listing.in_order():
            while waiting and (
                len(waiting) >= _AHEAD or ahead + at.size > _AHEAD_BYTES
            ):
                size, future = waiting.popleft()
                ahead -= size
                failures = _count_failures(failures, future.result())
                yield future.result()
            waiting.append((at.size, readers.submit(self._read, at)))
            ahead += at.size
        for _, future in waiting:
            failures = _count_failures(failures, future.result())
            yield future.result()

    def _read(self, at: RecordObject) -> Read:
        try:
            content = self._store.get(at.key, max_size=MAX_RECORD_SIZE)
            return self._with_decision(at, decode_record(content, at.key))
        except TransientStorageError as error:
            return Read(
                at, None, f"{error.message} {AGAIN.capitalize()}", may_pass=True
            )
        except VisionO3Error as error:
            return Read(at, None, error.message)

    def _with_decision(self, at: RecordObject, record: Record) -> Read:
        """Return a record with what was decided on its version last.

        Raises:
            VisionO3Error: That cannot be read. It may be that the version is blocked,
                so it is not added without.
        """
        version = record.version
        if version.withdrawal is not None:  # purged, which is final
            decided = max(at.withdrawal, version.withdrawal.number)
            return Read(at, record, decided=decided)
        if not at.withdrawal:
            return Read(at, record)
        key = withdrawal_key(at.collection, at.name, at.version, at.withdrawal)
        content = self._store.get(key, max_size=MAX_WITHDRAWAL_SIZE)
        decision = decode_decision(content, key)
        if (decision.version_id, decision.cid) != (version.id, version.cid):
            raise MalformedBlockError(
                f"The withdrawal {key} is of another version than the record beside "
                "it. Take one of them out of the store.",
                key=key,
            )
        withdrawal = decision.withdrawal
        if withdrawal is not None and withdrawal.state == PURGED:
            version = reduced(version, withdrawal)
        else:
            version = replace(version, withdrawal=withdrawal)
        return Read(at, replace(record, version=version), decided=at.withdrawal)

    def _unrecorded(
        self, listing: StoreListing, reported: set[str]
    ) -> Iterator[Problem]:
        """Yield versions without a record: lost, or never there.

        What an upload stores just now is neither.
        """
        for found in listing.unrecorded():
            if found.record_key in reported:
                continue
            with self._database.read() as session:
                known = queries.known_versions(
                    session, COLLECTIONS[found.collection], [found.record_key]
                ).get(found.record_key)
            if known is not None and known.state != PUBLISHED:
                continue
            if self._store.find(found.record_key) or not self._store.find(found.key):
                continue  # published, or swept, since the store was listed
            if known is not None:
                yield Problem(
                    found.record_key,
                    "The index has this version, but the store has not got its record, "
                    "without which it could not be rebuilt. "
                    "'vision-o3 admin scrub --repair' writes it anew.",
                )
                continue
            yield Problem(
                found.key,
                f"No record says what this is: the store has no {found.record_key}. "
                "If it is what an upload that failed has left, 'vision-o3 admin sweep' "
                f"removes it. If the record was lost, restore it from a copy, {AGAIN}",
            )


def _record(session: Session, collection: str, filling: Filling, now: datetime) -> None:
    """Note in the audit trail what a transaction adds, if it adds anything."""
    if filling.added or filling.withdrawn:
        detail = {"added": filling.added, "withdrawn": filling.withdrawn}
        record_event(session, OPERATOR, "index.rebuilt", collection, detail, now=now)


def require_index(database: Database, store: ObjectStore) -> None:
    """Raise if the index is empty, but the store has records.

    Then the index was lost, and is to be rebuilt first: an upload would take a number
    that is taken, and all objects would pass for what dead uploads left. Lists the
    store as far as the first record, and not at all if the index has a version.

    Raises:
        ConfigurationError: It is so.
        StorageError: The store cannot be listed.
        DatabaseUnavailableError: The database cannot be reached.
    """
    with database.read() as session:
        if queries.has_versions(session):
            return
    for found in store.list():
        place = parse_key(found.key)
        if place is not None and found.key == record_key(
            place.collection, place.name, place.version
        ):
            raise ConfigurationError(
                "The database has no versions, but the store has, as of "
                f"{found.key}: run 'vision-o3 admin rebuild-index' first, or name the "
                "database that belongs to this store (VISION_O3_DATABASE_URL).",
            )


def _count_failures(before: int, read: Read) -> int:
    """Return how many reads in a row have failed.

    Raises:
        TransientStorageError: Too many.
    """
    if not read.may_pass:
        return 0
    if before + 1 >= _MOST_FAILURES:
        raise TransientStorageError(
            f"The store answers no more: {read.reason} What was added so far stays.",
        )
    return before + 1


def _batches(reads: Iterable[Read], most: int) -> Iterator[list[Read]]:
    """Yield records as they came, ``most`` at a time, all of one collection."""
    batch: list[Read] = []
    size = 0
    for read in reads:
        if batch and (
            len(batch) >= most
            or size + read.at.size > _BATCH_BYTES
            or read.at.collection != batch[0].at.collection
        ):
            yield batch
            batch, size = [], 0
        batch.append(read)
        size += read.at.size
    if batch:
        yield batch
