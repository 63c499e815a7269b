"""Withdrawn versions: deprecated, blocked, purged; and which is a line's latest.

As in ``queries.py``, the caller owns the transaction. Those that change something need
``Database.write()``. Locks are taken in one order, as everywhere: the content, its
lines by name, their versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, case, delete, func, or_, select, update
from sqlalchemy.orm import aliased

from vision_o3.db.models import (
    BLOCKED,
    DATASETS,
    DEPRECATED,
    MODELS,
    PURGED,
    DatasetVersionRow,
)
from vision_o3.db.statements import (
    FRESH,
    IS_PUBLISHED,
    Found,
    is_sqlite,
    pairs,
    published,
)

if TYPE_CHECKING:
    from collections.abc import Collection as Items
    from collections.abc import Iterator
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.models import Collection, VersionRow

COLLECTIONS = (MODELS, DATASETS)
_UNSYNCHRONISED = {"synchronize_session": False}
"""Execution options: rows that the session has read need not be told."""


def collection_of(name: str) -> Collection:
    """Return the collection of a name."""
    return next(each for each in COLLECTIONS if each.name == name)


def is_served(version: type[VersionRow]) -> ColumnElement[bool]:
    """Return the condition that a version is neither blocked nor purged."""
    return or_(version.withdrawal.is_(None), version.withdrawal == DEPRECATED)


def preferred_first(version: type[VersionRow]) -> list[ColumnElement[Any]]:
    """Return the order in which versions of one content stand for it.

    Those that may be used come first; of equals the one that was begun last.
    """
    rank = case(
        {DEPRECATED: 1, BLOCKED: 2, PURGED: 3}, value=version.withdrawal, else_=0
    )
    return [rank, version.created_at.desc(), version.id.desc()]


def lock_content(session: Session, cid: CID) -> None:
    """Let nobody else publish or withdraw this content until the transaction ends.

    On SQLite a transaction that writes does so by itself.
    """
    if not is_sqlite(session):
        number = int.from_bytes(cid.digest[:8], "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))


def lock_version(
    session: Session, collection: Collection, name: str, number: int
) -> Found | None:
    """Return a published version, its line locked until the transaction ends."""
    line, version = collection.line, collection.version
    rows = session.execute(
        published(collection)
        .where(line.name == name, version.version == number)
        .with_for_update(of=line),
        execution_options=FRESH,
    )
    found = pairs(rows)
    if not found:
        return None
    # Read again: what was read may be from before the lock was had.
    session.refresh(found[0][1])
    return found[0]


def versions_of(session: Session, collection: Collection, cid: CID) -> list[Found]:
    """Return all published versions of a content, by line and number."""
    line, version = collection.line, collection.version
    return pairs(
        session.execute(
            published(collection)
            .where(version.cid == cid)
            .order_by(line.name, version.version),
            execution_options=FRESH,
        )
    )


def find_withdrawn_content(session: Session, cid: CID) -> Found | None:
    """Return a version that says why a content may not be published, if it may not.

    It may not if there are versions of it, in either collection, and all of them are
    blocked or purged. One that is blocked is returned before one that is purged.
    """
    found: list[Found] = []
    for collection in COLLECTIONS:
        best = pairs(
            session.execute(
                published(collection)
                .where(collection.version.cid == cid)
                .order_by(*preferred_first(collection.version))
                .limit(1),
                execution_options=FRESH,
            )
        )
        found += best
    if not found or any(is_served_row(row) for _, row in found):
        return None
    return min(found, key=lambda each: each[1].withdrawal == PURGED)


def is_served_row(row: VersionRow) -> bool:
    """Say whether a version is neither blocked nor purged."""
    return row.withdrawal not in {BLOCKED, PURGED}


def find_last(session: Session, collection: Collection, name: str) -> Found | None:
    """Return a line and that of its versions which comes nearest to being its latest.

    Of those that are not purged, if there are any, the one with the highest number.
    """
    line, version = collection.line, collection.version
    found = pairs(
        session.execute(
            published(collection)
            .where(line.name == name)
            .order_by(
                case({PURGED: 1}, value=version.withdrawal, else_=0),
                version.version.desc(),
            )
            .limit(1),
            execution_options=FRESH,
        )
    )
    return found[0] if found else None


def set_withdrawal(  # noqa: PLR0913 - the columns, all named by the caller
    session: Session,
    collection: Collection,
    row: VersionRow,
    *,
    number: int,
    state: str | None,
    reason: str | None,
    at: datetime | None,
    by: str | None,
    by_admin: bool,
) -> None:
    """Write what became of a version, whose line is locked; see to its line's latest.

    ``state`` is ``None`` where a withdrawal was lifted; then so is the rest but for the
    number. A purged version loses all that its publisher said of it.
    """
    row.withdrawal = state
    row.withdrawal_number = number
    row.withdrawn_reason = reason
    row.withdrawn_at = at
    row.withdrawn_by = by
    row.withdrawn_by_admin = by_admin
    if state == PURGED:
        _clear(session, collection, row)
    session.flush()
    set_latest(session, collection, row.line_id)


def set_latest(session: Session, collection: Collection, line_id: UUID) -> None:
    """Make the highest version that is served a line's latest; the line is locked."""
    version = collection.version
    other = aliased(version)
    latest = (
        select(func.max(other.version))
        .where(other.line_id == line_id, other.state == IS_PUBLISHED, is_served(other))
        .scalar_subquery()
    )
    of_line = version.line_id == line_id
    session.execute(
        update(version)
        .where(
            of_line,
            version.is_current,
            or_(latest.is_(None), version.version != latest),
        )
        .values(is_current=False),
        execution_options=_UNSYNCHRONISED,
    )
    session.execute(
        update(version)
        .where(of_line, version.version == latest, ~version.is_current)
        .values(is_current=True),
        execution_options=_UNSYNCHRONISED,
    )


def purged_contents(session: Session) -> Iterator[tuple[CID, CID | None, CID | None]]:
    """Yield the contents of purged versions, with their manifests and member indexes.

    A content may come more than once.
    """
    for collection in COLLECTIONS:
        version = collection.version
        listings: list[Any] = []
        if version is DatasetVersionRow:
            listings = [DatasetVersionRow.manifest_cid, DatasetVersionRow.index_cid]
        for row in session.execute(
            select(version.cid, *listings).where(version.withdrawal == PURGED)
        ):
            cid, manifest_cid, index_cid = (*row, None, None)[:3]
            yield cid, manifest_cid, index_cid


def find_other_naming(session: Session, keys: Items[str], cid: CID) -> Found | None:
    """Return a published version of other content, not purged, that names an object.

    As this software writes it there is none: what versions share is of equal content.
    """
    for collection in COLLECTIONS:
        version = collection.version
        columns = [version.object_key, version.sidecar_key, version.record_key]
        if version is DatasetVersionRow:
            columns += [DatasetVersionRow.manifest_key, DatasetVersionRow.index_key]
        for column in columns:  # each has an index
            found = pairs(
                session.execute(
                    published(collection)
                    .where(
                        column.in_(keys),
                        version.cid != cid,
                        version.withdrawal.is_distinct_from(PURGED),
                    )
                    .limit(1),
                    execution_options=FRESH,
                )
            )
            if found:
                return found[0]
    return None


def served_object(session: Session, cid: CID, object_key: str) -> bool:
    """Say whether a published version of this content, not purged, names an object."""
    for collection in COLLECTIONS:
        version = collection.version
        found = session.scalars(
            select(version.id)
            .where(
                version.cid == cid,
                version.object_key == object_key,
                version.state == IS_PUBLISHED,
                version.withdrawal.is_distinct_from(PURGED),
            )
            .limit(1)
        ).first()
        if found is not None:
            return True
    return False


def _clear(session: Session, collection: Collection, row: VersionRow) -> None:
    """Remove what the publisher said of a version."""
    row.description = row.description_folded = ""
    row.tags = []
    row.facts = {}
    for label in ("framework", "model_type"):
        if hasattr(row, label):
            setattr(row, label, "")
    session.execute(delete(collection.tag).where(collection.tag.version_id == row.id))
