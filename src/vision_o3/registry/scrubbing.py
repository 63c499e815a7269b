"""Scrub: read what published versions name, verify it, repair what is wrong.

A published version is immutable, and nobody writes its keys any more: no claim is
needed. How an object is replaced is in ``repairing.py``.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import structlog

from vision_o3.db import queries
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.errors import (
    IntegrityError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    VisionO3Error,
)
from vision_o3.registry.inventory import (
    Kind,
    StoredObject,
    objects_of,
    verify_object,
)
from vision_o3.registry.pacing import Pace, PatientStore, in_order
from vision_o3.registry.records import (
    MAX_RECORD_SIZE,
    Record,
    decode_record,
    recorded,
)
from vision_o3.registry.repairing import Repairer
from vision_o3.registry.values import to_version
from vision_o3.registry.withdrawal_records import MAX_WITHDRAWAL_SIZE, decode_decision
from vision_o3.storage.keys import parse_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection
    from vision_o3.registry.spool import Spool
    from vision_o3.registry.suspects import Suspects
    from vision_o3.storage.base import ObjectStore
    from vision_o3.storage.keys import ParsedKey

_PARALLEL = 4
_PAGE = 200
"""Versions read in one transaction."""
_KEPT_FINDINGS = 10_000
"""Findings that are returned one by one; the log has all."""
_UNREADABLE_IN_A_ROW = 10
"""After which the store is taken to be out of reach."""

_log = structlog.get_logger(__name__)


class Fault(Enum):
    """What is the matter with an object."""

    WRONG = "wrong"
    """Twice its bytes were not what the CID names."""
    MISSING = "missing"
    UNREADABLE = "unreadable"
    """The store failed: nobody knows whether the object is right."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An object that was not found to be right."""

    key: str
    kind: Kind
    cid: CID
    fault: Fault
    detail: str
    """What was met, as a sentence."""
    repaired: bool = False
    remedy: str = ""
    """How it was repaired, or why it could not be."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found, until it ended."""

    checked: int
    """Objects."""
    bytes_read: int
    """From the store that was scrubbed, and by repairs from the second."""
    wrong: tuple[Finding, ...]
    """What was wrong or missing, repaired or not; the first 10,000."""
    repaired: int
    unrepaired: int
    unreadable: tuple[Finding, ...]
    """What the store would not give; the first 10,000."""
    unreadable_count: int
    ended_early: str | None = None
    """Why not everything was looked at, as a sentence."""

    @property
    def clean(self) -> bool:
        """Whether all there is was looked at, and nothing wrong is left."""
        return not (self.unrepaired or self.unreadable_count or self.ended_early)


@dataclass(frozen=True, slots=True)
class _Job:
    """An object to verify, and what the database says of its version."""

    stored: StoredObject
    record: Record
    noted: int | None
    """How often it was noted as suspect before the scrub."""


class _Tally:
    """Gathers results. Not for several threads."""

    def __init__(self) -> None:
        self.checked = self.repaired = self.unrepaired = self.unreadable_count = 0
        self._wrong: list[Finding] = []
        self._unreadable: list[Finding] = []
        self._in_a_row = 0

    def add(self, finding: Finding | None) -> None:
        """Count an object, with what was found of it.

        Raises:
            StorageError: Too many in a row could not be read.
        """
        self.checked += 1
        if finding is None or finding.fault is not Fault.UNREADABLE:
            self._in_a_row = 0
        if finding is None:
            return
        if finding.fault is Fault.UNREADABLE:
            self.unreadable_count += 1
            self._in_a_row += 1
            _keep(self._unreadable, finding)
            if self._in_a_row == _UNREADABLE_IN_A_ROW:
                raise StorageError(
                    f"The store failed for {self._in_a_row} objects in a row, at last: "
                    f"{finding.detail}",
                )
            return
        self.repaired += finding.repaired
        self.unrepaired += not finding.repaired
        _keep(self._wrong, finding)

    @property
    def faults(self) -> int:
        """Objects that were not found to be right."""
        return self.repaired + self.unrepaired + self.unreadable_count

    def result(self, bytes_read: int, ended_early: str | None) -> Scrubbed:
        """Return what was gathered."""
        return Scrubbed(
            self.checked,
            bytes_read,
            tuple(self._wrong),
            self.repaired,
            self.unrepaired,
            tuple(self._unreadable),
            self.unreadable_count,
            ended_early,
        )


class Scrubber:
    """Verifies the objects of all published versions. One scrub at a time.

    Args:
        database: Says which versions there are.
        store: What is scrubbed, and repaired.
        second: Where to take what is wrong from; the same keys as the store's.
        suspects: Objects found right are cleared there, those left wrong are noted.
        spool: Where an object is kept while it is verified for a repair.
        rate_bytes_per_s: Read at most so much in a second; 0: no limit.
        parallel: Objects read at the same time; each takes up to 40 MiB.
        clock: Returns seconds that only grow, for the rate.
        sleep: Waits, for the rate and after failures.
    """

    def __init__(  # noqa: PLR0913 - what it joins, all named by the caller
        self,
        database: Database,
        store: ObjectStore,
        second: ObjectStore | None,
        suspects: Suspects,
        spool: Spool,
        *,
        rate_bytes_per_s: float,
        parallel: int = _PARALLEL,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._database = database
        patience = sleep or time.sleep
        self._store = PatientStore(store, sleep=patience)
        self._second = None if second is None else PatientStore(second, sleep=patience)
        self._suspects = suspects
        self._spool = spool
        self._parallel = parallel
        self._new_pace = partial(Pace, rate_bytes_per_s, clock=clock, sleep=sleep)
        self._pace = self._new_pace()
        self._repair = False
        self._full = threading.Event()

    def scrub(
        self,
        *,
        marked: bool = False,
        repair: bool = False,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> Scrubbed:
        """Verify every object that a published version names, once; say what is wrong.

        An object is wrong when it was read twice and was not what its CID names; a
        record or withdrawal, when it does not say what the database says. A failure of
        the store is tried again some times, and then reported as such: it says nothing
        of the object. Stopping (Ctrl-C) ends the scrub with what was found so far.

        Args:
            marked: Look only at objects that are noted as suspect, and at the sidecars
                of such artifacts.
            repair: Replace what is wrong or missing: from the second store, a sidecar
                also from its artifact, a record from the database.
            progress: Called after each object with how many were checked, the bytes
                that were read, and how many objects were not found to be right.

        Returns:
            What was found. A database or store that is out of reach ends the scrub,
            and is told there.
        """
        self._pace, self._repair = self._new_pace(), repair
        self._full.clear()
        tally = _Tally()
        ended_early = None
        try:
            noted = {each.key: each.times for each in self._suspects.list()}
            jobs = self._marked_jobs(noted) if marked else self._all_jobs(noted)
            work = in_order(
                jobs, self._check, parallel=self._parallel, stop=self._pace.stop
            )
            with closing(work) as findings:
                for finding in findings:
                    tally.add(finding)
                    if progress is not None:
                        progress(tally.checked, self._pace.total, tally.faults)
        except KeyboardInterrupt:
            ended_early = "The scrub was stopped."
        except VisionO3Error as error:
            ended_early = error.message
        return tally.result(self._pace.total, ended_early)

    # --------------------------------------------------------------- what to look at

    def _all_jobs(self, noted: dict[str, int]) -> Iterator[_Job]:
        """Yield the objects of all published versions, each once."""
        borrowed: set[str] = set()
        for collection in (MODELS, DATASETS):
            after: UUID | None = None
            while True:
                with self._database.read() as session:
                    found = queries.published_after(session, collection, after, _PAGE)
                    owners = _Owners(session)
                    jobs = []
                    for job in _jobs_of(collection, found, noted):
                        if not _is_own(job):
                            key = job.stored.key
                            if key in borrowed or owners.name(job.stored):
                                continue
                            borrowed.add(key)
                        jobs.append(job)
                yield from jobs
                if len(found) < _PAGE:
                    break
                after = found[-1][1].id

    def _marked_jobs(self, noted: dict[str, int]) -> Iterator[_Job]:
        """Yield the objects that are noted, and sidecars of artifacts that are."""
        for key, times in noted.items():
            jobs = self._jobs_at(key, noted)
            if not jobs:
                _log.info("suspect.dropped", key=key, reason="no version names it")
                self._suspects.clear(key, times=times)
            yield from jobs

    def _jobs_at(self, key: str, noted: dict[str, int]) -> list[_Job]:
        """Return the object under a key; with its sidecar, if it is an artifact.

        What was seen to be wrong of an artifact may have been its leaf digests.
        """
        with self._database.read() as session:
            for collection in (MODELS, DATASETS):
                found = _naming(session, collection, key)
                jobs = list(_jobs_of(collection, found, noted))
                if not jobs:
                    continue
                return [
                    job
                    for job in jobs
                    if job.stored.key == key
                    or (
                        job.stored.kind is Kind.SIDECAR
                        and job.record.version.object_key == key
                        and job.stored.key not in noted
                    )
                ]
        return []

    # -------------------------------------------------------------------- one object

    def _check(self, job: _Job) -> Finding | None:
        """Verify one object, and repair it if it is wrong and that is wanted."""
        stored = job.stored
        finding = self._examine(job)
        if finding is None:
            if job.noted is not None:
                self._suspects.clear(stored.key, times=job.noted)
            return None
        if self._purged_since(job) is not None:
            return None  # it is to be missing, or another record
        _log.error(
            f"scrub.{finding.fault.value}",
            key=stored.key,
            cid=str(stored.cid),
            detail=finding.detail,
        )
        if finding.fault is Fault.UNREADABLE:
            return finding
        if self._repair:
            finding = self._try_repair(job, finding)
        if finding.repaired:
            self._suspects.clear(stored.key)
            _log.info("scrub.repaired", key=stored.key, remedy=finding.remedy)
        else:
            self._suspects.mark(stored.key, stored.cid, finding.fault.value)
        return finding

    def _examine(self, job: _Job) -> Finding | None:
        """Return what is the matter with an object; wrong only if it is so twice."""
        stored = job.stored
        error: VisionO3Error | None = None
        for _ in range(2):
            try:
                self._verify(job)
            except (IntegrityError, ObjectNotFoundError) as failure:
                error = failure
            except StorageError as failure:
                return _finding(stored, Fault.UNREADABLE, failure)
            else:
                return None
        fault = Fault.WRONG if isinstance(error, IntegrityError) else Fault.MISSING
        return _finding(stored, fault, error)

    def _verify(self, job: _Job) -> None:
        if job.stored.kind is Kind.WITHDRAWAL:
            self._verify_withdrawal(job)
        elif job.stored.kind is not Kind.RECORD:
            verify_object(self._store, job.stored, self._pace)
        else:
            expected = replace(job.record, version=recorded(job.record.version))
            said = self._read_record(job.stored)
            if said != expected:
                raise IntegrityError(
                    f"The record {job.stored.key} does not say what the database says: "
                    f"they differ in {_difference(said, expected)}."
                )

    def _verify_withdrawal(self, job: _Job) -> None:
        key, version = job.stored.key, job.record.version
        content = self._store.get(key, max_size=MAX_WITHDRAWAL_SIZE)
        self._pace(len(content))
        said = decode_decision(content, key)
        if (said.version_id, said.withdrawal) != (version.id, version.withdrawal):
            raise IntegrityError(
                f"The withdrawal {key} does not say what the database says.",
            )

    def _read_record(self, stored: StoredObject) -> Record:
        content = self._store.get(stored.key, max_size=MAX_RECORD_SIZE)
        self._pace(len(content))
        return decode_record(content, stored.key)

    def _try_repair(self, job: _Job, finding: Finding) -> Finding:
        """Put the right object in the place of a wrong one; say how, or why not."""
        if self._full.is_set():
            return replace(finding, remedy="Not repaired, as there is no space left.")
        repairer = Repairer(self._store, self._second, self._spool, self._pace)
        try:
            source = repairer.repair(
                job.stored, job.record, replace=finding.fault is Fault.WRONG
            )
            # What was purged meanwhile is not brought back.
            purged = self._purged_since(job)
            if purged is not None:
                source = self._take_back(job, purged, repairer)
            else:
                self._verify(job)
        except VisionO3Error as error:
            if isinstance(error, StorageFullError):
                self._full.set()
            _log.error("scrub.repair_failed", key=job.stored.key, reason=error.code)
            return replace(finding, remedy=f"Not repaired. {error.message}")
        return replace(finding, repaired=True, remedy=f"Repaired from {source}.")

    def _purged_since(self, job: _Job) -> Record | None:
        """Return what is left of a version that was purged since its job was made."""
        version = job.record.version
        if version.is_purged:
            return None
        collection = MODELS if version.collection == MODELS.name else DATASETS
        with self._database.read() as session:
            found = queries.find_version(
                session, collection, version.name, version.version
            )
        if found is None:
            return None
        line, row = found
        left = Record(to_version(collection, line, row), line.id, line.created_at)
        return left if left.version.is_purged else None

    def _take_back(self, job: _Job, purged: Record, repairer: Repairer) -> str:
        """Undo a repair of what was purged while it was repaired; say what it is now.

        The purge may have looked for what is left just before the repair.
        """
        if job.stored.kind is Kind.RECORD:
            return repairer.repair(job.stored, purged, replace=True)
        if job.stored.kind is not Kind.WITHDRAWAL:
            self._store.delete(job.stored.key)
        return "the database, which says that it was purged"


def _naming(session: Session, collection: Collection, key: str) -> list[queries.Found]:
    """Return a version that names an object, if one does."""
    parsed = parse_key(key)
    if parsed is None or not parsed.withdrawal:
        return queries.versions_naming(session, collection, key, 1)
    if parsed.collection != collection.name:
        return []
    found = queries.find_version(session, collection, parsed.name, parsed.version)
    return [] if found is None else [found]


def _jobs_of(
    collection: Collection, found: list[queries.Found], noted: dict[str, int]
) -> Iterator[_Job]:
    """Yield the objects that versions name."""
    for line, row in found:
        record = Record(to_version(collection, line, row), line.id, line.created_at)
        for stored in objects_of(record.version):
            yield _Job(stored, record, noted.get(stored.key))


def _is_own(job: _Job) -> bool:
    """Say whether an object lies under its version's own keys."""
    version, owner = job.record.version, parse_key(job.stored.key)
    return owner is not None and (owner.collection, owner.name, owner.version) == (
        version.collection,
        version.name,
        version.version,
    )


class _Owners:
    """Knows which objects are verified with the version under whose keys they lie."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._objects: dict[ParsedKey, tuple[StoredObject, ...]] = {}

    def name(self, stored: StoredObject) -> bool:
        """Say whether that version is published, and names this object as it is."""
        owner = parse_key(stored.key)
        if owner is None:
            return False
        if owner not in self._objects:
            collection = MODELS if owner.collection == "models" else DATASETS
            found = queries.find_version(
                self._session, collection, owner.name, owner.version
            )
            self._objects[owner] = (
                objects_of(to_version(collection, *found)) if found else ()
            )
        return stored in self._objects[owner]


def _difference(said: Record, expected: Record) -> str:
    """Return the names of the fields in which two records differ."""
    fields = [
        f"line_{name}"
        for name in ("id", "created_at")
        if getattr(said, f"line_{name}") != getattr(expected, f"line_{name}")
    ]
    fields += [
        name
        for name in type(expected.version).__slots__
        if getattr(said.version, name) != getattr(expected.version, name)
    ]
    return ", ".join(fields)


def _finding(
    stored: StoredObject, fault: Fault, error: VisionO3Error | None
) -> Finding:
    detail = "" if error is None else error.message
    return Finding(stored.key, stored.kind, stored.cid, fault, detail)


def _keep(findings: list[Finding], finding: Finding) -> None:
    if len(findings) < _KEPT_FINDINGS:
        findings.append(finding)
