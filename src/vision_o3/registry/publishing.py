"""Publishing: receive → inspect → claim → store → publish, top to bottom.

Receiving is in ``spool.py``: when this module starts, the file is on the gateway's
disk and its CID known. Inspecting is in ``inspecting.py``. Bytes first, row last: a
version becomes visible in one short transaction after all its objects are stored. No
transaction spans a byte stream.
"""

from __future__ import annotations

import random
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import structlog

from vision_o3.db import models as tables
from vision_o3.db import queries, withdrawals
from vision_o3.db.accounts import lock_user
from vision_o3.db.changes import notify_change
from vision_o3.errors import (
    AlreadyExistsError,
    CIDMismatchError,
    ConfigurationError,
    FormatError,
    IntegrityError,
    PermissionDeniedError,
    QuotaExceededError,
    UploadInProgressError,
    VisionO3Error,
)
from vision_o3.formats.inspection import format_of_filename
from vision_o3.registry.audit import record_event
from vision_o3.registry.claims import Claim, Claims, Lease, Timing
from vision_o3.registry.records import encode_record
from vision_o3.registry.relaying import leaf_table
from vision_o3.registry.values import Published, Submission, Version, to_version
from vision_o3.registry.watching import UNWATCHED, Step
from vision_o3.registry.withdrawn import refused_content
from vision_o3.storage.keys import VersionKeys, version_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.content.dag import Dag
    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection, LineRow
    from vision_o3.registry.inspecting import Inspected, Inspector
    from vision_o3.registry.spool import Spooled
    from vision_o3.registry.watching import Watcher
    from vision_o3.storage.base import ObjectStore

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Intake:
    """An upload that was received and inspected."""

    submission: Submission
    spooled: Spooled
    inspected: Inspected
    stored: queries.StoredContent | None
    """Where published content of the same CID lies already."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A claimed version, with all that is to be stored for it; nobody sees it yet."""

    claim: Claim
    version: Version
    keys: VersionKeys
    record: bytes
    intake: _Intake


class Publisher:
    """Publishes versions of one collection. Safe in any number of threads, processes.

    Args:
        accepted: The formats that the collection accepts, by extension.
        watcher: Is told of each step.
    """

    def __init__(
        self,
        collection: Collection,
        database: Database,
        store: ObjectStore,
        inspector: Inspector,
        *,
        accepted: tuple[str, ...],
        timing: Timing,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._collection = collection
        self._database = database
        self._store = store
        self._inspector = inspector
        self._accepted = accepted
        self._timing = timing
        self._watcher = watcher
        self._claims = Claims(database, store, timing, watcher)

    def publish(self, submission: Submission, spooled: Spooled) -> Published:
        """Make the received file the line's next version, or answer the latest.

        If the line's latest version has this content, it is answered and nothing is
        stored. After an error nothing is visible, and the number is used again.

        Raises:
            CIDMismatchError: The bytes are not what the declared CID names.
            FormatError: The content is not of the declared, accepted format.
            UnsafeContentError: Loading or unpacking it could do harm.
            LimitExceededError: It exceeds a limit on what is looked into.
            VersionBlockedError, VersionPurgedError: All versions of this content were
                withdrawn, and the publisher is no admin.
            UploadInProgressError: Another upload holds the line for too long.
            StorageError: The store failed.
        """
        declared = self._declared_format(submission, spooled)
        with self._database.read() as session:
            _check_content(session, submission, spooled.dag.root)
        with ExitStack() as inspection:
            with self._step(Step.INSPECT, spooled.dag):
                inspected = inspection.enter_context(
                    self._inspector.inspect(spooled.path, declared)
                )
            stored = self._find_stored(spooled.dag.root, spooled.dag.size)
            return self._publish(_Intake(submission, spooled, inspected, stored))

    def check_may_publish(
        self, submission: Submission, may_read: Callable[[str, str], bool]
    ) -> None:
        """Raise unless the publisher may publish to the line, as it is now.

        ``publish`` looks again; this is to say so before bytes are sent.

        Args:
            submission: What is to be published.
            may_read: Says of a collection's line whether the publisher may read it.

        Raises:
            PermissionDeniedError: It is another's.
            VersionBlockedError, VersionPurgedError: The content that is declared was
                withdrawn, in a line that the publisher may read. Who has named a CID
                and sent nothing learns nothing of other lines.
        """
        with self._database.read() as session:
            line = queries.find_line(session, self._collection, submission.name)
            if submission.declared_cid is not None:
                _check_content(session, submission, submission.declared_cid, may_read)
        if line is not None:
            _check_owner(line, submission)

    def _publish(self, intake: _Intake) -> Published:
        dag = intake.spooled.dag
        with self._step(Step.CLAIM, dag):
            draft = self._claim(intake)
        if isinstance(draft, Version):
            return Published(draft, created=False)
        with self._claims.hold(draft.claim) as lease:
            try:
                with self._step(Step.STORE, dag):
                    self._put_objects(draft, lease)
                with self._step(Step.PUBLISH, dag):
                    self._make_visible(draft, lease)
            except BaseException:
                self._abandon(draft.claim, lease)
                raise
        return Published(draft.version, created=True)

    def _step(self, step: Step, dag: Dag) -> AbstractContextManager[object]:
        return self._watcher.step(step, cid=str(dag.root), size=dag.size)

    # ------------------------------------------------------------------ inspect

    def _declared_format(self, submission: Submission, spooled: Spooled) -> str:
        """Return what the file is said to be, if that can be published here at all."""
        declared_cid, actual = submission.declared_cid, spooled.dag.root
        if declared_cid is not None and declared_cid != actual:
            raise CIDMismatchError(
                f"The bytes received have the CID {actual}, but {declared_cid} was "
                "declared. The file was changed, or damaged on the way.",
                expected=str(declared_cid),
                actual=str(actual),
            )
        declared = submission.file_format
        if declared is None and submission.filename is not None:
            declared = format_of_filename(submission.filename)
        if declared is None or declared not in self._accepted:
            raise FormatError(
                f"{'No format' if declared is None else repr(declared)} is declared, "
                f"and {self._collection.name} are of {', '.join(self._accepted)}. "
                "Say which by the file's extension or the form's format field.",
                declared=declared,
            )
        return declared

    # -------------------------------------------------------------------- claim

    def _claim(self, intake: _Intake) -> _Draft | Version:
        """Claim the line's next number, or return its latest version if equal."""
        deadline = time.monotonic() + self._timing.claim_wait_s
        pause_s = _FIRST_PAUSE_S
        while True:
            outcome = self._try_claim(intake)
            if isinstance(outcome, _Draft | Version):
                return outcome
            if isinstance(outcome, Claim):
                self._claims.take_over(outcome)
                continue
            if time.monotonic() + pause_s > deadline:
                raise UploadInProgressError(
                    f"Another upload to {intake.submission.name!r} is being stored. "
                    "Try again in a moment.",
                    retry_after_s=2,
                )
            time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter only
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _find_stored(self, cid: CID, size: int) -> queries.StoredContent | None:
        """Find published content of this CID, if the store still has it."""
        with self._database.read() as session:
            stored = queries.find_stored_content(session, cid)
            if stored is None or any(
                queries.find_suspect(session, key)
                for key in (stored.object_key, stored.sidecar_key)
                if key is not None
            ):
                return None  # what may be damaged is not relied on
        found = self._store.find(stored.object_key)
        if found is None or found.size != size:
            _log.error("object.missing", key=stored.object_key, cid=str(cid))
            return None
        if stored.sidecar_key is not None and not self._store.find(stored.sidecar_key):
            _log.error("object.missing", key=stored.sidecar_key, cid=str(cid))
            return None
        listings = stored.listings
        if listings is not None and not (
            self._store.find(listings.manifest_key)
            and self._store.find(listings.index_key)
        ):
            _log.error("object.missing", key=listings.manifest_key, cid=str(cid))
            return replace(stored, listings=None)
        return stored

    def _try_claim(self, intake: _Intake) -> _Draft | Version | Claim | None:
        """Try once to claim, in one short transaction.

        Returns:
            The draft; or the latest version, which has this content already; or an
            expired claim that is in the way; or ``None`` while another's is alive.
        """
        submission = intake.submission
        try:
            with self._database.write() as session:
                now = self._timing.clock(session)
                line = queries.get_or_create_line(
                    session,
                    self._collection,
                    submission.name,
                    submission.publisher,
                    now,
                )
                _check_owner(line, submission)
                latest = queries.find_latest(session, self._collection, line.name)
                if latest is not None and latest[1].cid == intake.spooled.dag.root:
                    return to_version(self._collection, *latest)
                other = queries.find_claim(session, self._collection, line)
                if other is None:
                    return self._insert_claim(session, line, intake, now)
                if (
                    other.lease_token is None
                    or other.lease_expires_at is None
                    or other.lease_expires_at > now
                ):
                    return None
                return Claim(
                    self._collection,
                    line.name,
                    other.version,
                    other.id,
                    other.lease_token,
                )
        except AlreadyExistsError:
            return None

    def _insert_claim(
        self, session: Session, line: LineRow, intake: _Intake, now: datetime
    ) -> _Draft:
        """Write the ``storing`` row; see ``_try_claim``."""
        submission, inspected = intake.submission, intake.inspected
        _check_quota(session, submission, intake.spooled.dag.size)
        token = secrets.token_hex(16)
        keys = version_keys(
            self._collection.name,
            line.name,
            line.current_version + 1,
            inspected.file_format,
        )
        row = queries.insert_claim(
            session,
            self._collection,
            line,
            cid=intake.spooled.dag.root,
            file_format=inspected.file_format,
            file_size=intake.spooled.dag.size,
            description=submission.description,
            tags=sorted(set(submission.tags)),
            facts=inspected.facts,
            owner_id=submission.publisher,
            record_key=keys.record,
            created_at=now,
            lease_token=token,
            lease_expires_at=now + self._timing.lease,
            **self._described(submission),
            **_places(intake, keys),
        )
        version = to_version(self._collection, line, row)
        return _Draft(
            Claim(self._collection, line.name, row.version, row.id, token),
            version,
            keys,
            encode_record(
                version, line_id=str(line.id), line_created_at=line.created_at
            ),
            intake,
        )

    def _described(self, submission: Submission) -> dict[str, Any]:
        """Return the columns that only one of the collections has."""
        if self._collection.name != "models":
            return {}
        return {
            "framework": submission.framework or "",
            "model_type": submission.model_type or "",
        }

    # -------------------------------------------------------------------- store

    def _put_objects(self, draft: _Draft, lease: Lease) -> None:
        """Store what the version consists of and is not stored yet; the record last."""
        version, keys, intake = draft.version, draft.keys, draft.intake
        if self._claims.holds_another(draft.claim):
            raise ConfigurationError(
                f"The store has a version {version.version} of {version.name!r} that "
                "the index does not know, so the index is older than the store. "
                "Nothing was changed. Its operator must run 'vision-o3 admin "
                "rebuild-index' before anything is published.",
            )
        if version.object_key == keys.artifact:
            spooled = intake.spooled
            self._put_file(draft, keys.artifact, spooled.path, spooled.dag, lease)
            sidecar = spooled.dag.sidecar()
            if sidecar is not None:
                self._put_document(draft, keys.sidecar, sidecar, lease)
        for own_key, key, listing in (
            (keys.manifest, version.manifest_key, intake.inspected.manifest),
            (keys.index, version.index_key, intake.inspected.index),
        ):
            if listing is not None and key == own_key:
                self._put_file(draft, key, listing.path, listing.dag, lease)
        self._put_document(draft, keys.record, draft.record, lease)

    def _put_file(
        self, draft: _Draft, key: str, path: Path, dag: Dag, lease: Lease
    ) -> None:
        lease.check()
        try:
            self._store.put_file(key, path)
        except AlreadyExistsError:
            # Our own write whose answer was lost, or a late one of a writer that lost
            # its lease. No published version has this key: the claim is ours.
            if not self._holds(key, dag):
                self._claims.confirm(draft.claim, lease)
                self._store.delete(key)
                self._store.put_file(key, path)

    def _put_document(
        self, draft: _Draft, key: str, content: bytes, lease: Lease
    ) -> None:
        lease.check()
        try:
            self._store.put(key, content)
        except AlreadyExistsError:
            found = self._store.find(key)
            if (
                found is None
                or found.size != len(content)
                or self._store.get(key, max_size=len(content)) != content
            ):
                self._claims.confirm(draft.claim, lease)
                self._store.delete(key)
                self._store.put(key, content)

    def _holds(self, key: str, dag: Dag) -> bool:
        """Say whether the object under ``key`` is the DAG's file, byte for byte."""
        found = self._store.find(key)
        if found is None or found.size != dag.size:
            return False
        table = leaf_table(dag.root, dag.size, dag.sidecar())
        try:
            for index in range(table.count):
                start, end = table.span(index)
                table.verify(index, self._store.get_range(key, start, end))
        except IntegrityError:
            return False
        return True

    # ------------------------------------------------------------------ publish

    def _make_visible(self, draft: _Draft, lease: Lease) -> None:
        claim, version = draft.claim, draft.version
        lease.check()
        with self._database.write() as session:
            now = self._timing.clock(session)
            self._check_still_wanted(session, draft)
            published = queries.publish_claim(
                session, self._collection, claim.version_id, claim.token, now
            )
            if published:
                notify_change(session, version.collection, version.name)
                record_event(
                    session,
                    draft.intake.submission.actor,
                    "version.published",
                    f"{version.collection}/{version.name}/v{version.version}",
                    {"cid": str(version.cid), "size": version.file_size},
                    now=now,
                )
        if not published:
            raise UploadInProgressError(
                "Another upload took this line over before it was published. "
                "Send the file again.",
                retry_after_s=1,
            )
        _log.info(
            "version.published",
            collection=version.collection,
            line=version.name,
            version=version.version,
            cid=str(version.cid),
            size=version.file_size,
        )

    def _check_still_wanted(self, session: Session, draft: _Draft) -> None:
        """Raise if the content was withdrawn while it was stored.

        From here to the end of the transaction nobody withdraws it.

        Raises:
            VersionBlockedError, VersionPurgedError: All its versions were.
            UploadInProgressError: It was purged, with the object that was to be shared.
        """
        version = draft.version
        withdrawals.lock_content(session, version.cid)
        _check_content(session, draft.intake.submission, version.cid)
        if version.object_key != draft.keys.artifact and not withdrawals.served_object(
            session, version.cid, version.object_key
        ):
            raise UploadInProgressError(
                "This content was purged from the store just now. If it is wanted all "
                "the same, send the file again.",
                retry_after_s=1,
            )

    def _abandon(self, claim: Claim, lease: Lease) -> None:
        """Leave nothing behind; what cannot be removed now, the sweeper removes."""
        try:
            self._claims.give_back(claim, lease)
        except VisionO3Error as error:
            _log.warning(
                "claim.abandoned",
                collection=claim.collection.name,
                line=claim.name,
                version=claim.number,
                reason=error.code,
            )


def _check_content(
    session: Session,
    submission: Submission,
    cid: CID,
    may_read: Callable[[str, str], bool] = lambda *_: True,
) -> None:
    """Raise if a content was withdrawn and the publisher may not publish it again.

    ``may_read`` is as for ``Publisher.check_may_publish``.
    """
    if submission.is_admin:
        return
    withdrawn = withdrawals.find_withdrawn_content(session, cid)
    if withdrawn is not None:
        line, row = withdrawn
        of_models = isinstance(row, tables.ModelVersionRow)
        collection = tables.MODELS if of_models else tables.DATASETS
        if not may_read(collection.name, line.name):
            return
        raise refused_content(to_version(collection, line, row))


def _check_owner(line: LineRow, submission: Submission) -> None:
    """Raise unless the publisher may publish to the line, theirs or another's."""
    if submission.owner_only and line.owner_id != submission.publisher:
        raise PermissionDeniedError(
            f"{line.name!r} is another's, and you may publish to new names and your "
            "own. Choose another name, or ask the operator for the permission to "
            "write to this one.",
            name=line.name,
        )


def _check_quota(session: Session, submission: Submission, size: int) -> None:
    """Raise if a version of this size is more than the publisher may have."""
    if not (submission.max_versions or submission.max_bytes):
        return
    lock_user(session, submission.publisher)  # so that uploads at once are counted
    versions, used = queries.usage_of(session, submission.publisher)
    if submission.max_versions and versions + 1 > submission.max_versions:
        raise QuotaExceededError(
            f"You have published {versions} versions, and may have "
            f"{submission.max_versions}. Ask the operator for more.",
            limit=submission.max_versions,
        )
    if submission.max_bytes and used + size > submission.max_bytes:
        raise QuotaExceededError(
            f"You have published {used} bytes, and may have {submission.max_bytes}: "
            f"these {size} are too many. Ask the operator for more.",
            limit=submission.max_bytes,
        )


def _places(intake: _Intake, keys: VersionKeys) -> dict[str, Any]:
    """Return the columns that say where the objects lie, and what names listings.

    What is stored already is named where it lies. Its manifest stays the one of then,
    also if this version of the software would write another.
    """
    stored, inspected = intake.stored, intake.inspected
    places: dict[str, Any] = {
        "object_key": keys.artifact,
        "sidecar_key": keys.sidecar if intake.spooled.dag.nodes else None,
    }
    if stored is not None:
        places = {"object_key": stored.object_key, "sidecar_key": stored.sidecar_key}
    if inspected.manifest is None or inspected.index is None:
        return places
    listings = stored.listings if stored is not None else None
    if listings is not None:
        return places | {
            each.name: getattr(listings, each.name) for each in fields(listings)
        }
    return places | {
        "manifest_cid": inspected.manifest.dag.root,
        "manifest_key": keys.manifest,
        "index_cid": inspected.index.dag.root,
        "index_key": keys.index,
    }
