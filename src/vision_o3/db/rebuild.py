"""Queries of rebuilding: many lines and versions at a time, and of restoring.

As in ``queries.py``, the caller owns the transaction. Those that write need
``Database.write()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from vision_o3.db.models import (
    BLOCKED,
    PURGED,
    DatasetVersionRow,
    ModelVersionRow,
    RevokedTokenRow,
    UserRow,
    UserSecretRow,
)
from vision_o3.db.statements import FRESH, IS_STORING, is_sqlite
from vision_o3.db.statements import insert as insert_one

if TYPE_CHECKING:
    from collections.abc import Collection as Items
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.models import Collection, LineRow


_LOCK = 0x56_4F_34
"""PostgreSQL's advisory lock: any number that nothing else in the database takes."""


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What tells a version of the index from any other."""

    id: UUID
    number: int
    cid: CID
    state: str
    withdrawal_number: int


def lock_rebuilding(session: Session) -> None:
    """Let no other rebuilding or restoring add anything until the transaction ends.

    On SQLite a transaction that writes does so by itself.
    """
    if not is_sqlite(session):
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def has_versions(session: Session) -> bool:
    """Say whether the index has any version, published or claimed."""
    return any(
        session.scalars(select(version.id).limit(1)).first() is not None
        for version in (ModelVersionRow, DatasetVersionRow)
    )


def remove_claim(session: Session, collection: Collection, version_id: UUID) -> None:
    """Remove a version that is only claimed; not one that is published."""
    version = collection.version
    session.execute(
        delete(version).where(version.id == version_id, version.state == IS_STORING)
    )


def lock_lines(
    session: Session, collection: Collection, names: Items[str]
) -> dict[str, LineRow]:
    """Return those of the lines that are there, locked until the transaction ends.

    They are locked in the order of their names, as all who lock several do.
    """
    line = collection.line
    rows = session.scalars(
        select(line).where(line.name.in_(names)).order_by(line.name).with_for_update(),
        execution_options=FRESH,
    )
    return {row.name: row for row in cast("Iterable[LineRow]", rows)}


def claims_on(
    session: Session, collection: Collection, line_ids: Items[UUID]
) -> dict[UUID, datetime]:
    """Return which of the lines have a claim, and when its lease ends."""
    version = collection.version
    rows = session.execute(
        select(version.line_id, version.lease_expires_at).where(
            version.line_id.in_(line_ids), version.state == IS_STORING
        )
    )
    return {row[0]: cast("datetime", row[1]) for row in rows}


def known_versions(
    session: Session, collection: Collection, record_keys: Items[str]
) -> dict[str, KnownVersion]:
    """Return the versions, published or claimed, that have these records."""
    version = collection.version
    rows = session.execute(
        select(
            version.record_key,
            version.id,
            version.version,
            version.cid,
            version.state,
            version.withdrawal_number,
        ).where(version.record_key.in_(record_keys))
    )
    return {row[0]: KnownVersion(*row[1:]) for row in rows}


def taken_ids(
    session: Session, collection: Collection, version_ids: Items[UUID]
) -> set[UUID]:
    """Return which of the ids versions have."""
    version = collection.version
    return set(session.scalars(select(version.id).where(version.id.in_(version_ids))))


def add_lines(
    session: Session, collection: Collection, rows: Sequence[Mapping[str, Any]]
) -> set[str]:
    """Insert lines, locked until the transaction ends; return the names of those made.

    Not made is one whose name or id is taken.
    """
    if not rows:
        return set()
    line = collection.line
    make = sqlite.insert if is_sqlite(session) else postgresql.insert
    made = session.scalars(
        make(line).on_conflict_do_nothing().returning(line.name),
        [dict(row) for row in sorted(rows, key=lambda row: row["name"])],
    )
    return set(made)


def remove_lines(
    session: Session, collection: Collection, line_ids: Items[UUID]
) -> None:
    """Delete lines that this transaction made and nothing names."""
    line = collection.line
    session.execute(delete(line).where(line.id.in_(line_ids)))


def add_versions(
    session: Session,
    collection: Collection,
    rows: Sequence[Mapping[str, Any]],
    current: Mapping[UUID, int],
) -> None:
    """Insert published versions with their tags; see to their lines.

    ``rows`` have all columns of each version. Their lines are locked, and have no
    holes with them. ``current`` says the highest number of each such line, by id.
    """
    line, version, tag = collection.line, collection.version, collection.tag
    latest = {  # of those lines alone whose latest is among the rows
        row["line_id"]: row["version"]
        for row in sorted(rows, key=itemgetter("version"))
        if row["withdrawal"] not in {BLOCKED, PURGED}
    }
    session.execute(
        update(version)
        .where(version.line_id.in_(latest), version.is_current)
        .values(is_current=False)
    )
    session.execute(
        insert(version),
        [
            {**row, "is_current": row["version"] == latest.get(row["line_id"])}
            for row in rows
        ],
    )
    tags = [
        {"version_id": row["id"], "tag": each}
        for row in rows
        for each in sorted(set(row["tags"]))
    ]
    if tags:
        session.execute(insert(tag), tags)
    session.execute(
        update(line),
        [
            {"id": line_id, "current_version": number}
            for line_id, number in current.items()
        ],
    )


def users_after(session: Session, after: str, limit: int) -> Sequence[UserRow]:
    """Return the users that follow a name, by name."""
    return session.scalars(
        select(UserRow).where(UserRow.id > after).order_by(UserRow.id).limit(limit)
    ).all()


def revoked_tokens_after(
    session: Session, after: str, limit: int, *, now: datetime
) -> Sequence[RevokedTokenRow]:
    """Return revoked tokens that have not expired and follow an id, by id."""
    token = RevokedTokenRow
    # As SQLite and Python sort, whatever the database's language.
    jti = token.jti if is_sqlite(session) else token.jti.collate("C")
    return session.scalars(
        select(token)
        .where(jti > after, token.expires_at > now)
        .order_by(jti)
        .limit(limit)
    ).all()


def add_user(
    session: Session, values: Mapping[str, Any], secrets: Iterable[Mapping[str, Any]]
) -> int | None:
    """Insert a user with secrets; return how many of these have an id that is taken.

    ``None``, with nothing inserted, if there is a user of this name.
    """
    if insert_one(session, UserRow, **values) is None:
        return None
    made = [
        insert_one(session, UserSecretRow, user_id=values["id"], **secret)
        for secret in secrets
    ]
    return made.count(None)


def add_revoked_tokens(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert revoked tokens; return how many were not there."""
    if not rows:
        return 0
    make = sqlite.insert if is_sqlite(session) else postgresql.insert
    made = session.scalars(
        make(RevokedTokenRow).on_conflict_do_nothing().returning(RevokedTokenRow.jti),
        [dict(row) for row in rows],
    )
    return len(made.all())
