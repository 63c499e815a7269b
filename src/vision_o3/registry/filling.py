"""Filling the index with records: what one transaction of a rebuilding decides.

A record is added if its version is the next one of its line, all its objects are there,
and nothing in the index contradicts it. The first that cannot be added stops its line,
as numbers have no holes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from vision_o3.db import rebuild as queries
from vision_o3.db import withdrawals
from vision_o3.db.changes import notify_change
from vision_o3.db.models import DATASETS, MODELS, PUBLISHED
from vision_o3.registry.store_listing import record_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from vision_o3.db.models import LineRow, VersionRow
    from vision_o3.registry.records import Record
    from vision_o3.registry.store_listing import RecordObject, StoreListing
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectMeta

COLLECTIONS = {collection.name: collection for collection in (MODELS, DATASETS)}
AGAIN = "then run 'vision-o3 admin rebuild-index' again."


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the store that could not be brought into the index."""

    key: str
    """The object that is missing or wrong, or the record that was left out."""
    reason: str
    """What is the matter, and what to do."""


@dataclass(frozen=True, slots=True)
class Read:
    """A record that was read, or why it was not."""

    at: RecordObject
    record: Record | None
    """With what was decided on its version since, if anything was."""
    reason: str = ""
    may_pass: bool = False
    """Whether reading it later may succeed."""
    decided: int = 0
    """The number of the last decision on the version; 0: there is none."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A line to which nothing more can be added: its version ``number`` cannot."""

    collection: str
    name: str
    number: int


@dataclass(slots=True)
class _Plan:
    """What is to be added to one line: versions without a hole, maybe none."""

    name: str
    row: LineRow | None
    """The line, if the index has it."""
    records: list[Record] = field(default_factory=list)

    @property
    def following(self) -> int:
        """The number that comes next."""
        current = 0 if self.row is None else self.row.current_version
        return current + len(self.records) + 1


class Filling:
    """Decides what of a batch of records is added, and adds it, in one transaction.

    What it came to counts once that is committed.

    Args:
        session: The transaction.
        batch: Records of one collection, in the order of lines and numbers.
        listing: What the store holds.
        now: By the clock of leases.
        stopped: What stopped the line that goes on from the batch before.
    """

    def __init__(
        self,
        session: Session,
        batch: Sequence[Read],
        listing: StoreListing,
        now: datetime,
        stopped: Stopped | None,
    ) -> None:
        self.added = 0
        self.present = 0
        self.withdrawn = 0
        """Versions that were present, and on which was decided since."""
        self.problems: list[Problem] = []
        self.stopped: dict[str, Stopped] = {}
        self._session = session
        self._batch = batch
        self._listing = listing
        self._now = now
        self._collection = COLLECTIONS[batch[0].at.collection]
        self._decided = {read.at.key: read.decided for read in batch}
        if stopped is not None and stopped.collection == self._collection.name:
            self.stopped[stopped.name] = stopped

    def fill(
        self, find: Callable[[Iterable[str]], Iterable[ObjectMeta | None]]
    ) -> None:
        """Add what can be added.

        Args:
            find: Looks for objects in the store, several at once.

        Raises:
            StorageError: The store failed.
        """
        lines = {
            name: list(reads)
            for name, reads in groupby(self._batch, lambda read: read.at.name)
        }
        queries.lock_rebuilding(self._session)
        rows = queries.lock_lines(self._session, self._collection, lines)
        claims = queries.claims_on(
            self._session, self._collection, [row.id for row in rows.values()]
        )
        known = queries.known_versions(
            self._session, self._collection, [read.at.key for read in self._batch]
        )
        plans = [
            self._plan(_Plan(name, rows.get(name)), reads, claims, known)
            for name, reads in lines.items()
        ]
        self._leave_out_taken_ids(plans)
        made = self._make_lines(plans)
        self._leave_out_removed(plans, find)
        queries.remove_lines(
            self._session,
            self._collection,
            [
                made[plan.name]
                for plan in plans
                if plan.name in made and not plan.records
            ],
        )
        self._add([plan for plan in plans if plan.records])

    # --------------------------------------------------------------------- decide

    def _plan(
        self,
        plan: _Plan,
        reads: list[Read],
        claims: dict[UUID, datetime],
        known: dict[str, queries.KnownVersion],
    ) -> _Plan:
        """Plan what of a line's records is added; report what is not."""
        for read in reads:
            number = read.at.version
            stopped = self.stopped.get(plan.name)
            if stopped is not None:
                self._note_later(read.at.key, stopped)
            elif number < plan.following:
                self._compare(read, known.get(read.at.key))
            elif number > plan.following:
                self._stop(plan, self._missing(plan, number))
                self._note_later(read.at.key, self.stopped[plan.name])
            elif read.record is None:
                self._stop(plan, Problem(read.at.key, read.reason))
            elif problem := self._obstacle(
                plan, read.record, claims, known.get(read.at.key)
            ):
                self._stop(plan, problem)
            else:
                plan.records.append(read.record)
        return plan

    def _compare(self, read: Read, known: queries.KnownVersion | None) -> None:
        """Count a version that the index has, or say that it is another."""
        if read.record is None:
            self.problems.append(Problem(read.at.key, read.reason))
            return
        version = read.record.version
        if (
            known is not None
            and known.state == PUBLISHED
            and (str(known.id), known.cid) == (version.id, version.cid)
        ):
            self.present += 1
            if read.decided > known.withdrawal_number:
                self._withdraw(read.record, known.id, read.decided)
            return
        self._note(
            read.at.key,
            "The index has another version of this number, which was left as it is: "
            f"{known.cid if known else 'none'} there, {version.cid} in the record. "
            "If the index is right, 'vision-o3 admin scrub --repair' writes the record "
            "anew. If the record is right, the index is of another store, or took "
            "uploads before it was rebuilt: rebuild into an empty one.",
        )

    def _withdraw(self, record: Record, version_id: UUID, number: int) -> None:
        """Write the last decision on a version that the index has to its row."""
        row = cast(
            "VersionRow", self._session.get_one(self._collection.version, version_id)
        )
        withdrawals.set_withdrawal(
            self._session,
            self._collection,
            row,
            number=number,
            **_withdrawal_columns(record.version),
        )
        notify_change(self._session, self._collection.name, record.version.name)
        self.withdrawn += 1

    def _missing(self, plan: _Plan, number: int) -> Problem:
        """Return the problem that a line's records have a hole before a number."""
        key = record_key(self._collection.name, plan.name, plan.following)
        last = number - 1
        numbers = (
            f"v{last} is"
            if last == plan.following
            else f"v{plan.following} to v{last} are"
        )
        return Problem(
            key,
            f"The record of {numbers} missing, so the line ends before. Restore it "
            f"from a copy of the store, {AGAIN}",
        )

    def _obstacle(
        self,
        plan: _Plan,
        record: Record,
        claims: dict[UUID, datetime],
        known: queries.KnownVersion | None,
    ) -> Problem | None:
        """Return why a record cannot be added as its line's next, if so.

        A claim that is over and of this very version is none: the index was restored
        from a moment at which this was being stored. It makes room for the record.
        """
        version, key = record.version, _key_of(record)
        lease_ends = None if plan.row is None else claims.get(plan.row.id)
        is_over = lease_ends is not None and lease_ends <= self._now
        own_claim: UUID | None = None
        if is_over and known is not None and str(known.id) == version.id:
            own_claim = known.id
        if lease_ends is not None and own_claim is None:
            return Problem(
                key,
                "An upload that died holds this line: run 'vision-o3 admin sweep', "
                f"{AGAIN}"
                if is_over
                else "An upload to this line is at work. If this version is not its "
                f"own, wait for its end, {AGAIN}",
            )
        if not _same_line(plan, record):
            return Problem(
                key,
                "It says otherwise who began its line, and when, than "
                f"{'the index' if plan.row else 'the record before it'}. One of them "
                f"is of another registry. Take it out of the store, {AGAIN}",
            )
        for place in _objects_of(version):
            size = self._listing.size(place)
            wanted = version.file_size if place == version.object_key else size
            if size is None or size != wanted:
                what = "missing" if size is None else f"of {size} bytes, not {wanted}"
                return Problem(
                    place,
                    f"This object is {what}, but v{version.version} of "
                    f"{version.collection}/{version.name} needs it, so the line ends "
                    f"before. Restore it from a copy of the store, {AGAIN}",
                )
        if own_claim is not None:
            queries.remove_claim(self._session, self._collection, own_claim)
        return None

    def _leave_out_taken_ids(self, plans: list[_Plan]) -> None:
        """Leave out records with an id that another version has."""
        ids = [_id_of(record) for plan in plans for record in plan.records]
        taken = queries.taken_ids(self._session, self._collection, ids)
        for plan in plans:
            for at, record in enumerate(plan.records):
                if _id_of(record) in taken:
                    self._cut(
                        plan,
                        at,
                        "Another version has its id: one of the two is a copy under "
                        f"another name. Take that out of the store, {AGAIN}",
                    )
                    break
                taken.add(_id_of(record))

    # ------------------------------------------------------------------------ add

    def _make_lines(self, plans: list[_Plan]) -> dict[str, UUID]:
        """Insert the lines that the index lacks; return their ids by name."""
        new = {
            plan.name: plan.records[0]
            for plan in plans
            if plan.row is None and plan.records
        }
        made = queries.add_lines(
            self._session,
            self._collection,
            [
                {
                    "id": record.line_id,
                    "name": name,
                    "owner_id": record.version.owner_id,
                    "created_at": record.line_created_at,
                    "current_version": 0,
                }
                for name, record in new.items()
            ],
        )
        for plan in plans:
            if plan.name in new and plan.name not in made:
                self._cut(
                    plan,
                    0,
                    "Its line has the id of another one, or was begun by an upload "
                    f"just now. Take out of the store what is a copy, {AGAIN}",
                )
        return {name: new[name].line_id for name in made}

    def _leave_out_removed(
        self,
        plans: list[_Plan],
        find: Callable[[Iterable[str]], Iterable[ObjectMeta | None]],
    ) -> None:
        """Leave out what was removed since the store was listed.

        The lines are locked and without a claim, so nothing is removed from now on.
        Before, a claim can only have been on the first version that the index lacks,
        and giving it back removed all objects of that: one of them tells.
        """
        filled = [plan for plan in plans if plan.records]
        keys = [_key_of(plan.records[0]) for plan in filled]
        for plan, found in zip(filled, find(keys), strict=True):
            if found is None:
                reason = "It was removed just now, with an upload that failed."
                self._cut(plan, 0, reason)

    def _add(self, plans: list[_Plan]) -> None:
        rows = [
            _row_of(record, self._decided[_key_of(record)])
            for plan in plans
            for record in plan.records
        ]
        if not rows:
            return
        queries.add_versions(
            self._session,
            self._collection,
            rows,
            {plan.records[0].line_id: plan.following - 1 for plan in plans},
        )
        for plan in plans:
            notify_change(self._session, self._collection.name, plan.name)
        self.added += len(rows)

    # --------------------------------------------------------------------- report

    def _cut(self, plan: _Plan, at: int, reason: str) -> None:
        """Take the records from one on out of a plan, and say why."""
        left_out = plan.records[at:]
        del plan.records[at:]
        self._stop(plan, Problem(_key_of(left_out[0]), reason))
        for record in left_out[1:]:
            self._note_later(_key_of(record), self.stopped[plan.name])

    def _stop(self, plan: _Plan, problem: Problem) -> None:
        self.stopped[plan.name] = Stopped(
            self._collection.name, plan.name, plan.following
        )
        self.problems.append(problem)

    def _note_later(self, key: str, stopped: Stopped) -> None:
        self._note(key, f"It comes after v{stopped.number}, which could not be added.")

    def _note(self, key: str, reason: str) -> None:
        self.problems.append(Problem(key, reason))


def _key_of(record: Record) -> str:
    version = record.version
    return record_key(version.collection, version.name, version.version)


def _id_of(record: Record) -> UUID:
    return UUID(record.version.id)


def _same_line(plan: _Plan, record: Record) -> bool:
    """Say whether a record names the line that the plan's others, or its row, do."""
    stated = record.line_id, record.version.owner_id, record.line_created_at
    if plan.row is not None:
        return stated == (plan.row.id, plan.row.owner_id, plan.row.created_at)
    if not plan.records:
        return True
    first = plan.records[0]
    return stated == (first.line_id, first.version.owner_id, first.line_created_at)


def _objects_of(version: Version) -> list[str]:
    """Return the keys of all that a version consists of, but for its record."""
    if version.is_purged:
        return []
    keys = (
        version.object_key,
        version.sidecar_key,
        version.manifest_key,
        version.index_key,
    )
    return [key for key in keys if key is not None]


def _withdrawal_columns(version: Version) -> dict[str, Any]:
    """Return what a row says of a withdrawal, as ``set_withdrawal`` names it."""
    withdrawal = version.withdrawal
    if withdrawal is None:
        return dict.fromkeys(("state", "reason", "at", "by")) | {"by_admin": False}
    return {
        "state": withdrawal.state,
        "reason": withdrawal.reason,
        "at": withdrawal.at,
        "by": withdrawal.by,
        "by_admin": withdrawal.by_admin,
    }


def _row_of(record: Record, decided: int) -> dict[str, Any]:
    """Return all columns of a version's row, but for ``is_current``."""
    version = record.version
    withdrawal = _withdrawal_columns(version)
    row = {
        "id": _id_of(record),
        "line_id": record.line_id,
        "version": version.version,
        "state": PUBLISHED,
        "cid": version.cid,
        "file_format": version.file_format,
        "file_size": version.file_size,
        "description": version.description,
        "description_folded": version.description.casefold(),
        "tags": list(version.tags),
        "facts": version.facts,
        "owner_id": version.publisher,
        "object_key": version.object_key,
        "sidecar_key": version.sidecar_key,
        "record_key": _key_of(record),
        "created_at": version.created_at,
        # When it became visible is not in the record; nothing is ordered by it.
        "published_at": version.created_at,
        "lease_token": None,
        "lease_expires_at": None,
        "withdrawal": withdrawal["state"],
        "withdrawal_number": decided,
        "withdrawn_at": withdrawal["at"],
        "withdrawn_by": withdrawal["by"],
        "withdrawn_by_admin": withdrawal["by_admin"],
        "withdrawn_reason": withdrawal["reason"],
    }
    if version.collection == MODELS.name:
        return row | {
            "framework": version.framework,
            "model_type": version.model_type,
        }
    return row | {
        "manifest_cid": version.manifest_cid,
        "manifest_key": version.manifest_key,
        "index_cid": version.index_cid,
        "index_key": version.index_key,
    }
