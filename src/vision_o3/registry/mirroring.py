"""Mirror: copy every version from one store to another, verified, resumable.

What a version consists of is copied first and its record last. So at any moment the
target's records name only what is there and right, and a mirror that was broken off
anywhere is continued by mirroring again. The records of a line are copied in order,
and what was decided on a version's use before its record: a version that is blocked at
the source never stands at the target as if it were not.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import structlog

from vision_o3.db.models import PURGED
from vision_o3.errors import (
    AlreadyExistsError,
    IntegrityError,
    LimitExceededError,
    MalformedBlockError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    VersionPurgedError,
    VisionO3Error,
)
from vision_o3.registry.inventory import (
    Kind,
    StoredObject,
    content_of,
    fetch_object,
    objects_of,
    verify_object,
)
from vision_o3.registry.pacing import Pace, PatientStore, in_order
from vision_o3.registry.records import MAX_RECORD_SIZE, decode_record
from vision_o3.registry.store_listing import StoreListing, record_key
from vision_o3.registry.withdrawal_records import MAX_WITHDRAWAL_SIZE, decode_decision
from vision_o3.storage.keys import parse_key, withdrawal_key, withdrawal_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vision_o3.registry.spool import Spool
    from vision_o3.registry.values import Version
    from vision_o3.storage.base import ObjectStore

    IsClaimed = Callable[[str, str, int], bool]

_PARALLEL = 4
_LOCKS = 64
_KEPT_PROBLEMS = 10_000
"""Problems that are returned one by one; the log has all."""
_FAILURES_IN_A_ROW = 10
"""Versions, after which a store is taken to be out of reach."""
_TRIED_GAPS = 100
"""Numbers that a listing lacks within a line, and that are asked for one by one."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a version, or a part of it, is not at the target."""

    key: str
    code: str
    detail: str
    """What was met and what to do, in sentences."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What a mirror did, until it ended."""

    versions: int
    """That are complete at the target now."""
    copied: int
    """Objects."""
    present: int
    """Objects that were at the target already."""
    bytes: int
    """Copied."""
    skipped: int
    """Versions whose upload is not finished, or was withdrawn meanwhile."""
    problems: tuple[Problem, ...]
    """The first 10,000."""
    problem_count: int
    ended_early: str | None = None
    """Why not everything was looked at, as a sentence."""

    @property
    def complete(self) -> bool:
        """Whether the target has all that the source has."""
        return not (self.problem_count or self.ended_early)


class _Job:
    """A version to copy."""

    __slots__ = ("decisions", "done", "key", "line", "number", "previous", "within")

    def __init__(
        self,
        line: tuple[str, str],
        number: int,
        previous: _Job | None,
        *,
        within: bool,
        decisions: int = 0,
    ) -> None:
        self.line = line
        self.number = number
        self.key = record_key(*line, number)
        self.previous = previous
        """The version before in its line."""
        self.within = within
        """Whether the line has a later one, so that this one must be there."""
        self.decisions = decisions
        """How often was decided on its use."""
        self.done = threading.Event()


@dataclass(slots=True)
class _Outcome:
    """What became of a version."""

    complete: bool = False
    skipped: bool = False
    copied: int = 0
    present: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    failed: bool = False
    """Whether a store failed, rather than a version."""


class _ProblemError(Exception):
    """A version cannot be copied; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class _Withdrawn(Exception):  # noqa: N818 - no error, but a way out
    """The version is not one any more, or not yet."""


class _Record(NamedTuple):
    key: str
    version: Version
    content: bytes
    held: bool
    """Whether the target has it already."""
    purged_at: str | None = None
    """Which of the two stores alone has the version purged."""


class Mirror:
    """Copies versions from one store to another. One at a time to a target.

    Args:
        source: Where the versions are.
        target: Where they are wanted, under the same keys.
        spool: Where an object is kept while it is verified; has room for ``parallel``
            of the largest.
        parallel: Versions copied at the same time; each takes up to 40 MiB.
        sleep: Waits after failures.
    """

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        spool: Spool,
        *,
        parallel: int = _PARALLEL,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._source = PatientStore(source, sleep=sleep)
        self._target = PatientStore(target, sleep=sleep)
        self._spool = spool
        self._parallel = parallel
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._lent: set[str] = set()
        """Objects copied for another version than the one under whose keys they lie."""
        self._pace = Pace()
        self._verify = False
        self._is_claimed: IsClaimed = _never

    def mirror(
        self,
        *,
        verify: bool = False,
        is_claimed: IsClaimed | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> Mirrored:
        """Copy what the target lacks; say what could not be copied, and why.

        Every object is verified against its CID on its way. What the target has under
        the same key with the same size is left as it is, and nothing at the target is
        ever replaced. Stopping (Ctrl-C) ends the mirror with what was done so far.

        Args:
            verify: Read and verify also what the target has already. Without it, only
                objects of versions whose record is not there yet are.
            is_claimed: Says of a collection, line and number whether that is only being
                uploaded. Its record may be there before it is published, and go away
                again if it never is.
            progress: Called after each version with how many were looked at, how many
                there are, and the bytes that were copied.

        Returns:
            What was done. A store that is full or out of reach ends the mirror, and is
            told there.
        """
        self._verify, self._is_claimed = verify, is_claimed or _never
        self._pace = Pace()
        self._lent.clear()
        tally, source = _Tally(), self._source.store
        ended_early = None
        try:
            with ExitStack() as opened:
                listing = opened.enter_context(
                    self._source.patiently(lambda: StoreListing(source))
                )
                outcomes = opened.enter_context(
                    closing(
                        in_order(
                            _jobs(listing),
                            self._copy,
                            parallel=self._parallel,
                            stop=self._pace.stop,
                        )
                    )
                )
                for outcome in outcomes:
                    tally.add(outcome)
                    if progress is not None:
                        progress(tally.seen, listing.records, tally.size)
        except KeyboardInterrupt:
            ended_early = "The mirror was stopped."
        except VisionO3Error as error:
            ended_early = error.message
        return tally.result(ended_early)

    # ------------------------------------------------------------------ one version

    def _copy(self, job: _Job) -> _Outcome:
        """Copy one version, its record after that of the one before."""
        outcome = _Outcome()
        try:
            record = self._read_record(job)
            self._bring_decisions(job, record, outcome)
            for stored in objects_of(record.version):
                if stored.kind in {Kind.RECORD, Kind.WITHDRAWAL}:
                    continue
                try:
                    self._bring(stored, record, outcome)
                except (_ProblemError, StorageError, ObjectNotFoundError) as error:
                    _note(outcome, stored.key, error)
            if not outcome.problems:
                # It began before this one did, so it will end.
                if job.previous is not None:
                    job.previous.done.wait()
                self._bring_record(job, record, outcome)
                outcome.complete = True
        except _Withdrawn:
            outcome.skipped = True
            _log.info("mirror.skipped", key=job.key)
        except (_ProblemError, StorageError) as error:
            _note(outcome, job.key, error)
        finally:
            job.done.set()
            job.previous = None  # let the chain go
        return outcome

    def _read_record(self, job: _Job) -> _Record:
        """Return a version's record from the source, if it is to be copied."""
        try:
            content = self._get_record(self._source, job.key)
        except ObjectNotFoundError:
            if not job.within or self._is_claimed(*job.line, job.number):
                raise _Withdrawn from None
            raise _ProblemError(
                Problem(
                    job.key,
                    ObjectNotFoundError.code,
                    "The source lacks this record, though it has one of a later "
                    "version. 'admin scrub --repair' there can bring it back.",
                )
            ) from None
        if self._is_claimed(*job.line, job.number):
            raise _Withdrawn
        version = decode_record(content, job.key).version
        try:
            held = self._get_record(self._target, job.key)
        except ObjectNotFoundError:
            return _Record(job.key, version, content, held=False)
        if held == content:
            return _Record(job.key, version, content, held=True)
        other = decode_record(held, job.key).version
        if other.id != version.id or other.is_purged == version.is_purged:
            raise _ProblemError(_conflict(job.key))
        purged_at = "target" if other.is_purged else "source"
        return _Record(job.key, version, content, held=True, purged_at=purged_at)

    def _get_record(self, store: PatientStore, key: str) -> bytes:
        """Return a record's bytes; twice read, if they are none at first.

        Raises:
            ObjectNotFoundError, StorageError: As the store says.
            _ProblemError: It is no record.
        """
        error: VisionO3Error | None = None
        for _ in range(2):
            try:
                content = store.get(key, max_size=MAX_RECORD_SIZE)
                decode_record(content, key)
            except (IntegrityError, LimitExceededError) as failure:
                error = failure
            else:
                return content
        where = "source" if store is self._source else "target"
        raise _ProblemError(
            Problem(
                key,
                MalformedBlockError.code,
                f"At the {where}: {error} 'admin scrub --repair' there can mend it.",
            )
        ) from error

    def _bring_record(self, job: _Job, record: _Record, outcome: _Outcome) -> None:
        if record.held:
            outcome.present += 1
            return
        try:
            if self._get_record(self._source, job.key) != record.content:
                raise _Withdrawn
        except ObjectNotFoundError:
            raise _Withdrawn from None
        try:
            self._target.put(job.key, record.content)
        except AlreadyExistsError:  # ours, its answer lost, or another mirror's
            if self._get_record(self._target, job.key) != record.content:
                raise _ProblemError(_conflict(job.key)) from None
        outcome.copied += 1
        outcome.size += len(record.content)

    def _bring_decisions(self, job: _Job, record: _Record, outcome: _Outcome) -> None:
        """Copy what was decided on a version's use; the last of it must be there.

        Raises:
            _ProblemError: It cannot be copied; or the version was purged at one store
                alone, of which the other has something left: nothing else is copied.
            StorageError: A store failed.
        """
        if record.purged_at == "target":
            raise _ProblemError(_half_purged(job.key, record.purged_at))
        # Those that are there, not all numbers up to the highest: that is the store's
        # to say, and may be any.
        numbers = self._decisions_on(record.version) if job.decisions else []
        for number in sorted({*numbers, job.decisions} - {0}):
            if number > job.decisions:
                break
            key = withdrawal_key(*job.line, job.number, number)
            try:
                content = self._get_decision(self._source, key, record.version)
            except ObjectNotFoundError as error:
                if number == job.decisions:
                    raise _ProblemError(Problem(key, error.code, str(error))) from error
                continue
            try:
                self._target.put(key, content)
            except AlreadyExistsError:
                if self._get_decision(self._target, key, record.version) != content:
                    raise _ProblemError(_decided_otherwise(key)) from None
                outcome.present += 1
            else:
                outcome.copied += 1
                outcome.size += len(content)
        version = record.version
        if record.purged_at is not None or (
            version.is_purged
            and any(self._target.find(key) for _, key, _ in content_of(version))
        ):
            raise _ProblemError(_half_purged(job.key, "source"))

    def _get_decision(self, store: PatientStore, key: str, version: Version) -> bytes:
        """Return the bytes of a decision on a version; twice read, if they are none.

        Raises:
            ObjectNotFoundError, StorageError: As the store says.
            _ProblemError: It is none.
        """
        error: VisionO3Error | None = None
        for _ in range(2):
            try:
                content = store.get(key, max_size=MAX_WITHDRAWAL_SIZE)
                if decode_decision(content, key).version_id == version.id:
                    return content
                error = MalformedBlockError(f"{key} is of another version.")
            except (IntegrityError, LimitExceededError) as failure:
                error = failure
        detail = (
            f"At the source: {error} 'admin scrub --repair' there can mend it."
            if store is self._source
            else f"At the target: {error} Remove it there and mirror again."
        )
        raise _ProblemError(Problem(key, MalformedBlockError.code, detail)) from error

    # ------------------------------------------------------------------- one object

    def _bring(self, stored: StoredObject, record: _Record, outcome: _Outcome) -> None:
        """Copy an object to the target, unless it is there already."""
        with self._locks[hash(stored.key) % _LOCKS]:  # versions share objects
            size = None
            found = self._target.find(stored.key)
            if found is None:
                size = self._transfer(stored, record)
            elif self._verify or not self._is_trusted(stored, record):
                self._check_target(stored)
            elif found.size != (expected := self._expected_size(stored, found.size)):
                raise _ProblemError(
                    _wrong_at_target(
                        stored, f"It has {found.size} bytes, not {expected}."
                    )
                )
            is_own = _owner_record(stored) == record.key
            if size is not None:
                outcome.copied += 1
                outcome.size += size
                if not is_own:
                    self._lent.add(stored.key)
            elif is_own and stored.key not in self._lent:
                outcome.present += 1  # what is shared counts with its owner alone

    def _is_trusted(self, stored: StoredObject, record: _Record) -> bool:
        """Say whether an object at the target was verified when it came there.

        It was if its version's record came after it. Otherwise it may be what is left
        of a version that was withdrawn.
        """
        owner = _owner_record(stored)
        if owner == record.key:
            return record.held
        return owner is not None and self._target.find(owner) is not None

    def _expected_size(self, stored: StoredObject, there: int) -> int:
        """Return the size that an object must have, as far as can be known."""
        if stored.kind is Kind.ARTIFACT:
            return stored.file_size
        found = self._source.find(stored.key)
        return there if found is None else found.size

    def _transfer(self, stored: StoredObject, record: _Record) -> int:
        """Copy an object that the target lacks; return its bytes.

        Raises:
            _Withdrawn: The version was purged meanwhile; the target does not have it.
            _ProblemError, StorageError: It cannot be copied.
        """
        with self._spool.scratch(stored.file_size) as path:
            try:
                try:
                    size = fetch_object(self._source, stored, path, self._pace)
                except IntegrityError:  # once more: it may have happened on the way
                    size = fetch_object(self._source, stored, path, self._pace)
            except IntegrityError as error:
                raise _ProblemError(
                    Problem(
                        stored.key,
                        error.code,
                        f"At the source: {error.message} 'admin scrub --repair' there "
                        "can mend it.",
                    )
                ) from error
            try:
                self._target.put_file(stored.key, path)
            except AlreadyExistsError:  # ours, its answer lost, or another mirror's
                self._check_target(stored)
            # Whoever purges deletes at the source first, and then at the target: what
            # the source still has now will be found there. What it has not may have
            # come too late to be.
            if self._source.find(stored.key) is None and self._is_purged(record):
                self._target.delete(stored.key)
                raise _Withdrawn
            _log.debug("mirror.copied", key=stored.key, size=size)
            return size

    def _is_purged(self, record: _Record) -> bool:
        """Say whether the source has decided by now that a version is purged."""
        version = record.version
        numbers = self._decisions_on(version)
        if not numbers:
            return False
        place = version.collection, version.name, version.version
        key = withdrawal_key(*place, max(numbers))
        content = self._get_decision(self._source, key, version)
        return decode_decision(content, key).state == PURGED

    def _decisions_on(self, version: Version) -> list[int]:
        """Return the numbers of the decisions on a version that the source has."""
        place = version.collection, version.name, version.version
        store, prefix = self._source.store, withdrawal_prefix(*place)
        found = self._source.patiently(lambda: list(store.list(prefix)))
        parsed = (parse_key(each.key) for each in found)
        return [each.withdrawal for each in parsed if each is not None]

    def _check_target(self, stored: StoredObject) -> None:
        error: VisionO3Error | None = None
        for _ in range(2):
            try:
                verify_object(self._target, stored, self._pace)
            except IntegrityError as failure:
                error = failure
            else:
                return
        raise _ProblemError(_wrong_at_target(stored, str(error))) from error


class _Tally:
    """Gathers outcomes. Not for several threads."""

    def __init__(self) -> None:
        self.seen = self.size = 0
        self._versions = self._copied = self._present = self._skipped = 0
        self._problems: list[Problem] = []
        self._problem_count = 0
        self._in_a_row = 0

    def add(self, outcome: _Outcome) -> None:
        """Count a version.

        Raises:
            StorageError: A store is full, or failed for too many in a row.
        """
        self.seen += 1
        self.size += outcome.size
        self._versions += outcome.complete
        self._copied += outcome.copied
        self._present += outcome.present
        self._skipped += outcome.skipped
        self._problem_count += len(outcome.problems)
        room = max(_KEPT_PROBLEMS - len(self._problems), 0)
        self._problems += outcome.problems[:room]
        self._in_a_row = self._in_a_row + 1 if outcome.failed else 0
        for problem in outcome.problems:
            _log.error("mirror.failed", key=problem.key, reason=problem.code)
            if problem.code == StorageFullError.code:
                raise StorageFullError(problem.detail)
        if self._in_a_row == _FAILURES_IN_A_ROW:
            raise StorageError(
                f"A store failed for {self._in_a_row} versions in a row, at last: "
                f"{outcome.problems[-1].detail}",
            )

    def result(self, ended_early: str | None) -> Mirrored:
        """Return what was gathered."""
        return Mirrored(
            versions=self._versions,
            copied=self._copied,
            present=self._present,
            bytes=self.size,
            skipped=self._skipped,
            problems=tuple(self._problems),
            problem_count=self._problem_count,
            ended_early=ended_early,
        )


def _jobs(listing: StoreListing) -> Iterator[_Job]:
    """Yield the versions, each line's in order, small gaps in a line filled.

    A listing is not of one moment, so a version may lack that was published while it
    went on, though a later one is there.
    """
    previous: _Job | None = None
    following = chain(islice(listing.in_order(), 1, None), [None])
    for record, later in zip(listing.in_order(), following):  # noqa: B905 - one of nothing
        line = record.collection, record.name
        if previous is not None and previous.line != line:
            previous = None
        expected = previous.number + 1 if previous is not None else 1
        for number in islice(range(expected, record.version), _TRIED_GAPS):
            previous = _Job(line, number, previous, within=True)
            yield previous
        within = later is not None and (later.collection, later.name) == line
        previous = _Job(
            line,
            record.version,
            previous,
            within=within,
            decisions=record.withdrawal,
        )
        yield previous


def _owner_record(stored: StoredObject) -> str | None:
    """Return the record of the version under whose keys an object lies."""
    owner = parse_key(stored.key)
    if owner is None:
        return None
    return record_key(owner.collection, owner.name, owner.version)


def _never(_: str, __: str, ___: int) -> bool:
    return False


def _note(outcome: _Outcome, key: str, error: Exception) -> None:
    """Add a failure to what became of a version."""
    if isinstance(error, _ProblemError):
        outcome.problems.append(error.problem)
    elif isinstance(error, VisionO3Error):
        outcome.failed |= isinstance(error, StorageError)
        outcome.problems.append(Problem(key, error.code, error.message))


def _conflict(key: str) -> Problem:
    stem = key.removesuffix("record.json")
    return Problem(
        key,
        AlreadyExistsError.code,
        "The target has another version under this number: it is the mirror of another "
        "registry, or has what is left of an upload that was withdrawn. If it is not "
        f"wanted, remove the objects {stem}* at the target and mirror again.",
    )


def _half_purged(key: str, purged_at: str) -> Problem:
    other = "source" if purged_at == "target" else "target"
    return Problem(
        key,
        VersionPurgedError.code,
        f"This version was purged at the {purged_at}, and the {other} still has it. "
        "Mirroring deletes nothing: name that store as VISION_O3_SECOND_STORE and run "
        "'vision-o3 admin purge' again.",
    )


def _decided_otherwise(key: str) -> Problem:
    return Problem(
        key,
        AlreadyExistsError.code,
        "The target has another decision under this number: was one made there, by "
        "another gateway? If it is not wanted: Remove it there and mirror again.",
    )


def _wrong_at_target(stored: StoredObject, detail: str) -> Problem:
    return Problem(
        stored.key,
        IntegrityError.code,
        f"The target's object is wrong and was left as it is. {detail} Remove it there "
        "and mirror again.",
    )
