"""Every query. Functions take the session first; the caller owns the transaction.

``collection`` says which set of tables. Only ``published`` versions are found, except
by the functions on claims. Those that write need ``Database.write()``; times are
passed in, and leases are compared with ``database_now``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Select, func, select

from vision_o3.db.accounts import find_user, insert_user, list_users, usage_of
from vision_o3.db.claims import (
    expired_claims,
    find_claim,
    get_or_create_line,
    insert_claim,
    named_objects,
    object_is_named,
    publish_claim,
    release_claim,
    renew_lease,
    take_over_claim,
)
from vision_o3.db.listing import SORTS, LineFilters, list_latest
from vision_o3.db.models import DATASETS, MODELS, PURGED, DatasetVersionRow
from vision_o3.db.statements import (
    FRESH,
    IS_PUBLISHED,
    Found,
    current,
    is_sqlite,
    pairs,
    published,
)
from vision_o3.db.suspects import (
    clear_suspect,
    find_suspect,
    list_suspects,
    mark_suspect,
    published_after,
    versions_naming,
)
from vision_o3.db.withdrawals import preferred_first

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.models import Collection, LineRow, VersionRow

__all__ = [
    "SORTS",
    "Found",
    "LineFilters",
    "StoredContent",
    "StoredListings",
    "clear_suspect",
    "database_now",
    "expired_claims",
    "find_by_cid",
    "find_claim",
    "find_latest",
    "find_line",
    "find_stored_content",
    "find_suspect",
    "find_user",
    "find_version",
    "get_or_create_line",
    "history",
    "insert_claim",
    "insert_user",
    "list_latest",
    "list_suspects",
    "list_users",
    "mark_suspect",
    "named_objects",
    "object_is_named",
    "publish_claim",
    "published_after",
    "release_claim",
    "renew_lease",
    "take_over_claim",
    "usage_of",
    "versions_naming",
]


@dataclass(frozen=True, slots=True)
class StoredListings:
    """Where an archive's manifest and member index lie, and what names them."""

    manifest_cid: CID
    manifest_key: str
    index_cid: CID
    index_key: str


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Where published content lies in the store."""

    object_key: str
    sidecar_key: str | None
    listings: StoredListings | None = None
    """What is stored of an archive's files, if it was published as one."""


def database_now(session: Session) -> datetime:
    """Return the time by the database's clock, which all gateways share."""
    if is_sqlite(session):
        return datetime.now(UTC)
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def find_line(session: Session, collection: Collection, name: str) -> LineRow | None:
    """Return a line, published or not."""
    line = collection.line
    found = session.scalars(
        select(line).where(line.name == name), execution_options=FRESH
    )
    return cast("LineRow | None", found.one_or_none())


def find_latest(session: Session, collection: Collection, name: str) -> Found | None:
    """Return a line and its latest version that is neither blocked nor purged."""
    return _first(session, current(collection).where(collection.line.name == name))


def find_version(
    session: Session, collection: Collection, name: str, number: int
) -> Found | None:
    """Return a line and one of its versions."""
    return _first(
        session,
        published(collection).where(
            collection.line.name == name, collection.version.version == number
        ),
    )


def find_by_cid(
    session: Session,
    collection: Collection,
    cid: CID,
    lines: frozenset[str] | None = None,
) -> Found | None:
    """Return the version of this content which was begun last, and its line.

    If lines are named, only of these. One that was withdrawn is returned only if all
    are; deprecated before blocked, blocked before purged.

    Not the one that became visible last: that moment is in no record, and the answer
    must be the same after the index was rebuilt.
    """
    version = collection.version
    statement = published(collection).where(version.cid == cid)
    if lines is not None:
        statement = statement.where(collection.line.name.in_(lines))
    return _first(session, statement.order_by(*preferred_first(version)))


def find_stored_content(session: Session, cid: CID) -> StoredContent | None:
    """Return where the first version of this content, in either collection, lies.

    Purged ones do not count: nothing of them is there any more.
    """
    found: list[VersionRow] = []
    for collection in (MODELS, DATASETS):
        version = collection.version
        rows = session.scalars(
            select(version)
            .where(
                version.cid == cid,
                version.state == IS_PUBLISHED,
                version.withdrawal.is_distinct_from(PURGED),
            )
            .order_by(version.created_at, version.id)
            .limit(1)
        )
        found += cast("list[VersionRow]", rows.all())
    if not found:
        return None
    oldest = min(found, key=lambda row: (row.created_at, row.id))
    return StoredContent(oldest.object_key, oldest.sidecar_key, _listings_of(oldest))


def _listings_of(row: VersionRow) -> StoredListings | None:
    """Return where a version's listings lie, if it has any."""
    if (
        not isinstance(row, DatasetVersionRow)
        or row.manifest_cid is None
        or row.manifest_key is None
        or row.index_cid is None
        or row.index_key is None
    ):
        return None
    return StoredListings(
        row.manifest_cid, row.manifest_key, row.index_cid, row.index_key
    )


def history(
    session: Session, collection: Collection, name: str, offset: int, limit: int
) -> tuple[int, list[Found]]:
    """Return how many versions a line has, and some of them, newest first."""
    found = find_line(session, collection, name)
    if found is None or not found.current_version:
        return 0, []
    line, version = collection.line, collection.version
    rows = session.execute(
        published(collection)
        .where(line.name == name)
        .order_by(version.version.desc())
        .offset(offset)
        .limit(limit),
        execution_options=FRESH,
    )
    # Numbers have no holes.
    return found.current_version, pairs(rows)


def _first(session: Session, statement: Select[Any, Any]) -> Found | None:
    found = pairs(session.execute(statement.limit(1), execution_options=FRESH))
    return found[0] if found else None
