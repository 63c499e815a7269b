"""What verifying the store asks: suspect objects, and every published version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from vision_o3.db.models import DatasetVersionRow, SuspectRow
from vision_o3.db.statements import FRESH, Found, is_sqlite, pairs, published

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID
    from vision_o3.db.models import Collection


def mark_suspect(
    session: Session, key: str, cid: CID, reason: str, now: datetime
) -> None:
    """Note that an object was answered wrongly; again, if it is noted already."""
    make = sqlite.insert if is_sqlite(session) else postgresql.insert
    session.execute(
        make(SuspectRow)
        .values(
            object_key=key,
            cid=cid,
            reason=reason,
            first_seen_at=now,
            last_seen_at=now,
            times=1,
        )
        .on_conflict_do_update(
            index_elements=[SuspectRow.object_key],
            set_={
                "cid": cid,
                "reason": reason,
                "last_seen_at": now,
                "times": SuspectRow.times + 1,
            },
        )
    )


def clear_suspect(session: Session, key: str, times: int | None = None) -> bool:
    """Forget a suspect object; with ``times``, only if it was noted no oftener."""
    conditions = [SuspectRow.object_key == key]
    if times is not None:
        conditions.append(SuspectRow.times <= times)
    cleared = session.execute(
        delete(SuspectRow).where(*conditions).returning(SuspectRow.object_key)
    )
    return cleared.one_or_none() is not None


def find_suspect(session: Session, key: str) -> SuspectRow | None:
    """Return what is noted of an object."""
    return session.scalars(
        select(SuspectRow).where(SuspectRow.object_key == key),
        execution_options=FRESH,
    ).one_or_none()


def list_suspects(session: Session, after: str, limit: int) -> list[SuspectRow]:
    """Return the first suspect objects whose keys come after one, by key."""
    return list(
        session.scalars(
            select(SuspectRow)
            .where(SuspectRow.object_key > after)
            .order_by(SuspectRow.object_key)
            .limit(limit),
            execution_options=FRESH,
        )
    )


def published_after(
    session: Session, collection: Collection, after: UUID | None, limit: int
) -> list[Found]:
    """Return the first published versions whose ids come after one, by id."""
    version = collection.version
    statement = published(collection)
    if after is not None:
        statement = statement.where(version.id > after)
    return pairs(
        session.execute(
            statement.order_by(version.id).limit(limit), execution_options=FRESH
        )
    )


def versions_naming(
    session: Session, collection: Collection, key: str, limit: int
) -> list[Found]:
    """Return some of the published versions that name an object, the oldest first."""
    version = collection.version
    named: list[ColumnElement[bool]] = [
        version.object_key == key,
        version.sidecar_key == key,
        version.record_key == key,
    ]
    if version is DatasetVersionRow:
        named += [
            DatasetVersionRow.manifest_key == key,
            DatasetVersionRow.index_key == key,
        ]
    return pairs(
        session.execute(
            published(collection)
            .where(or_(*named))
            .order_by(version.created_at, version.id)
            .limit(limit),
            execution_options=FRESH,
        )
    )
