"""Claims and leases in the database, and which objects versions name."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy import ColumnElement, delete, exists, select, update

from vision_o3.db.models import (
    PUBLISHED,
    PURGED,
    DatasetVersionRow,
    ModelVersionRow,
)
from vision_o3.db.statements import FRESH, IS_STORING, Found, insert, pairs
from vision_o3.errors import AlreadyExistsError

if TYPE_CHECKING:
    from collections.abc import Collection as Keys
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.db.models import Collection, LineRow, VersionRow

_KEYS_AT_ONCE = 500
_KEY_COLUMNS = (
    ModelVersionRow.object_key,
    ModelVersionRow.sidecar_key,
    ModelVersionRow.record_key,
    DatasetVersionRow.object_key,
    DatasetVersionRow.sidecar_key,
    DatasetVersionRow.record_key,
    DatasetVersionRow.manifest_key,
    DatasetVersionRow.index_key,
)
"""Where versions name objects; each has an index."""


def get_or_create_line(
    session: Session, collection: Collection, name: str, owner_id: str, now: datetime
) -> LineRow:
    """Return the line, made if need be, locked until the transaction ends."""
    line = collection.line
    while True:
        found = session.scalars(
            select(line).where(line.name == name).with_for_update(),
            execution_options=FRESH,
        ).one_or_none()
        if found is not None:
            return cast("LineRow", found)
        insert(session, line, name=name, owner_id=owner_id, created_at=now)


def find_claim(
    session: Session, collection: Collection, line: LineRow
) -> VersionRow | None:
    """Return the line's ``storing`` version."""
    version = collection.version
    found = session.scalars(
        select(version).where(version.line_id == line.id, version.state == IS_STORING),
        execution_options=FRESH,
    )
    return cast("VersionRow | None", found.one_or_none())


def insert_claim(
    session: Session,
    collection: Collection,
    line: LineRow,
    **values: object,
) -> VersionRow:
    """Claim the line's next number: insert its version in state ``storing``.

    ``values`` are the columns that the publisher decides, with ``lease_token`` and
    ``lease_expires_at``. The line is as ``get_or_create_line`` returned it.

    Raises:
        AlreadyExistsError: The line has a claim, or the number is taken.
    """
    row = cast(
        "VersionRow | None",
        insert(
            session,
            collection.version,
            line_id=line.id,
            version=line.current_version + 1,
            **values,
        ),
    )
    if row is None:
        raise AlreadyExistsError("Another upload to this line is being stored.")
    session.add_all(
        collection.tag(version_id=row.id, tag=tag) for tag in sorted(set(row.tags))
    )
    session.flush()
    return row


def renew_lease(
    session: Session,
    collection: Collection,
    version_id: UUID,
    lease_token: str,
    new_expiry: datetime,
) -> bool:
    """Let a claim of ours last until ``new_expiry``; false if it is not ours."""
    number = _update_claim(
        session, collection, version_id, lease_token, lease_expires_at=new_expiry
    )
    return number is not None


def take_over_claim(  # noqa: PLR0917 - the claim, the lease and the time
    session: Session,
    collection: Collection,
    version_id: UUID,
    old_token: str,
    new_token: str,
    new_expiry: datetime,
    now: datetime,
) -> bool:
    """Make an expired claim ours; false if it is not expired, or no longer there."""
    number = _update_claim(
        session,
        collection,
        version_id,
        old_token,
        collection.version.lease_expires_at <= now,
        lease_token=new_token,
        lease_expires_at=new_expiry,
    )
    return number is not None


def release_claim(
    session: Session, collection: Collection, version_id: UUID, lease_token: str
) -> bool:
    """Delete a claim of ours, and its line if nothing else is left of that.

    Returns:
        False, with nothing deleted, if the claim is not ours.
    """
    line, version = collection.line, collection.version
    found = _lock_line(session, collection, version_id)
    if found is None:
        return False
    deleted = session.execute(
        delete(version)
        .where(*_ours(collection, version_id, lease_token))
        .returning(version.id)
    ).one_or_none()
    if deleted is None:
        return False
    session.execute(
        delete(line).where(
            line.id == found.id,
            line.current_version == 0,
            ~exists().where(version.line_id == found.id),
        )
    )
    return True


def publish_claim(
    session: Session,
    collection: Collection,
    version_id: UUID,
    lease_token: str,
    now: datetime,
) -> bool:
    """Make a claimed version its line's current one; false if it is not ours."""
    version = collection.version
    line = _lock_line(session, collection, version_id)
    number = _update_claim(
        session,
        collection,
        version_id,
        lease_token,
        state=PUBLISHED,
        published_at=now,
        lease_token=None,
        lease_expires_at=None,
    )
    if line is None or number is None:
        return False
    session.execute(
        update(version)
        .where(version.line_id == line.id, version.is_current)
        .values(is_current=False)
    )
    session.execute(
        update(version).where(version.id == version_id).values(is_current=True)
    )
    line.current_version = number
    session.flush()
    return True


def expired_claims(
    session: Session, collection: Collection, now: datetime, limit: int
) -> list[Found]:
    """Return claims whose lease ran out, the oldest first, with their lines."""
    line, version = collection.line, collection.version
    return pairs(
        session.execute(
            select(line, version)
            .join(version, version.line_id == line.id)
            .where(version.state == IS_STORING, version.lease_expires_at <= now)
            .order_by(version.lease_expires_at, version.id)
            .limit(limit),
            execution_options=FRESH,
        )
    )


def object_is_named(session: Session, key: str) -> bool:
    """Say whether a version needs this object; see ``named_objects``."""
    return bool(named_objects(session, [key]))


def named_objects(session: Session, keys: Keys[str]) -> set[str]:
    """Return those of the keys that a version, published or claimed, names.

    A purged one names its record alone: nothing else of it is to be there.
    """
    wanted, named = sorted(set(keys)), set[str]()
    for start in range(0, len(wanted), _KEYS_AT_ONCE):
        batch = wanted[start : start + _KEYS_AT_ONCE]
        for column in _KEY_COLUMNS:
            naming = select(column).where(column.in_(batch))
            if column.key != "record_key":
                withdrawal = column.class_.withdrawal
                naming = naming.where(withdrawal.is_distinct_from(PURGED))
            found = session.scalars(naming)
            named.update(key for key in found if key is not None)
    return named


def _lock_line(
    session: Session, collection: Collection, version_id: UUID
) -> LineRow | None:
    """Lock a version's line. Before the version, as all do: no deadlock."""
    line, version = collection.line, collection.version
    found = session.scalars(
        select(line)
        .join(version, version.line_id == line.id)
        .where(version.id == version_id)
        .with_for_update(of=line),
        execution_options=FRESH,
    )
    return cast("LineRow | None", found.one_or_none())


def _update_claim(
    session: Session,
    collection: Collection,
    version_id: UUID,
    token: str,
    *conditions: ColumnElement[bool],
    **values: object,
) -> int | None:
    """Change a claim of ours; return its number, or ``None`` if it is not ours."""
    version = collection.version
    return session.scalars(
        update(version)
        .where(*_ours(collection, version_id, token), *conditions)
        .values(**values)
        .returning(version.version)
    ).one_or_none()


def _ours(
    collection: Collection, version_id: UUID, token: str
) -> tuple[ColumnElement[bool], ...]:
    version = collection.version
    return (
        version.id == version_id,
        version.lease_token == token,
        version.state == IS_STORING,
    )
