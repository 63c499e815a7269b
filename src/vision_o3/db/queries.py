"""Every query. Functions take the session first; the caller owns the transaction.

``collection`` says which set of tables. Only ``published`` versions are found, except
by the functions on claims. Those that write need ``Database.write()``; times are
passed in, and leases are compared with ``database_now``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Select,
    delete,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute

from vision_o3.db.models import (
    DATASETS,
    MODELS,
    PUBLISHED,
    AuditEventRow,
    Base,
    Collection,
    LineRow,
    UserRow,
    VersionRow,
)
from vision_o3.errors import AlreadyExistsError, InputError

if TYPE_CHECKING:
    from collections.abc import Collection as Keys
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from vision_o3.content.cid import CID

_S = TypeVar("_S", bound=Select[Any])
_R = TypeVar("_R", bound=Base)

SORTS = ("name", "-name", "created_at", "-created_at", "size", "-size")
_KEYS_AT_ONCE = 500
# Literals, not parameters: a planner must see them to use a partial index.
_STORING = literal_column("'storing'")
_PUBLISHED = literal_column("'published'")


@dataclass(frozen=True, slots=True)
class LineFilters:
    """Which lines to list, judged by their current versions. Absent means any."""

    framework: str | None = None
    model_type: str | None = None
    file_format: str | None = None
    tags: tuple[str, ...] = ()
    """All of them."""
    owner: str | None = None
    """The line's owner."""
    q: str | None = None
    """Part of the name or description, in any case."""


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Where published content lies in the store."""

    object_key: str
    sidecar_key: str | None


def database_now(session: Session) -> datetime:
    """Return the time by the database's clock, which all gateways share."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    return cast("datetime", now).astimezone(UTC)


# ------------------------------------------------------------------------- finding


def find_line(session: Session, collection: Collection, name: str) -> LineRow | None:
    """Return a line, published or not."""
    line = collection.line
    found = session.scalars(_fresh(select(line).where(line.name == name)))
    return found.one_or_none()


def find_latest(
    session: Session, collection: Collection, name: str
) -> tuple[LineRow, VersionRow] | None:
    """Return a line and its current version."""
    line = collection.line
    return _first(session, _current(collection).where(line.name == name))


def find_version(
    session: Session, collection: Collection, name: str, number: int
) -> tuple[LineRow, VersionRow] | None:
    """Return a line and one of its versions."""
    line, version = collection.line, collection.version
    return _first(
        session,
        _published(collection).where(line.name == name, version.version == number),
    )


def find_by_cid(
    session: Session, collection: Collection, cid: CID
) -> tuple[LineRow, VersionRow] | None:
    """Return the version of this content which was published last."""
    version = collection.version
    return _first(
        session,
        _published(collection)
        .where(version.cid == cid)
        .order_by(version.published_at.desc(), version.id.desc())
        .limit(1),
    )


def find_stored_content(session: Session, cid: CID) -> StoredContent | None:
    """Return where the first version of this content, in either collection, lies."""
    found = []
    for collection in (MODELS, DATASETS):
        version = collection.version
        found += session.execute(
            select(
                version.published_at,
                version.id,
                version.object_key,
                version.sidecar_key,
            )
            .where(version.cid == cid, version.state == _PUBLISHED)
            .order_by(version.published_at, version.id)
            .limit(1)
        ).all()
    if not found:
        return None
    _, _, object_key, sidecar_key = min(found, key=lambda row: (row[0], row[1]))
    return StoredContent(object_key, sidecar_key)


def history(
    session: Session, collection: Collection, name: str, offset: int, limit: int
) -> tuple[int, list[tuple[LineRow, VersionRow]]]:
    """Return how many versions a line has, and some of them, newest first."""
    line = find_line(session, collection, name)
    if line is None:
        return 0, []
    version = collection.version
    rows = session.scalars(
        select(version)
        .where(version.line_id == line.id, version.state == _PUBLISHED)
        .order_by(version.version.desc())
        .offset(offset)
        .limit(limit)
    )
    # Numbers have no holes.
    return line.current_version, [(line, row) for row in rows]


def list_latest(  # noqa: PLR0913 - paging is three values everywhere
    session: Session,
    collection: Collection,
    filters: LineFilters,
    sort: str,
    offset: int,
    limit: int,
) -> tuple[int, list[tuple[LineRow, VersionRow]]]:
    """Return how many lines pass all filters, and some with their current versions.

    Args:
        sort: One of ``SORTS``; equals follow by name.

    Raises:
        InputError: Not a sort order.
    """
    conditions = _conditions(session, collection, filters)
    rows = session.execute(
        _current(collection)
        .where(*conditions)
        .order_by(*_order(collection, sort))
        .offset(offset)
        .limit(limit)
    ).all()
    total = session.execute(
        select(func.count()).select_from(
            _current(collection).where(*conditions).subquery()
        )
    ).scalar_one()
    return total, [cast("tuple[LineRow, VersionRow]", tuple(row)) for row in rows]


def _conditions(
    session: Session, collection: Collection, filters: LineFilters
) -> list[ColumnElement[bool]]:
    line, version, tag = collection.line, collection.version, collection.tag
    texts = (
        filters.framework,
        filters.model_type,
        filters.file_format,
        filters.owner,
        filters.q,
        *filters.tags,
    )
    if any(value is not None and not _storable(value) for value in texts):
        return [false()]
    conditions: list[ColumnElement[bool]] = []
    for column, value in (
        ("framework", filters.framework),
        ("model_type", filters.model_type),
        ("file_format", filters.file_format),
    ):
        if value is not None:
            held = getattr(version, column, None)
            conditions.append(false() if held is None else held == value)
    if filters.owner is not None:
        conditions.append(line.owner_id == filters.owner)
    conditions += [
        exists().where(tag.version_id == version.id, tag.tag == wanted)
        for wanted in filters.tags
    ]
    if filters.q:
        # Not LIKE: it would need escapes, and SQLite limits its patterns.
        is_sqlite = session.get_bind().dialect.name == "sqlite"
        position = func.instr if is_sqlite else func.strpos
        part = filters.q.casefold()
        conditions.append(
            or_(
                position(line.name, part) > 0,
                position(version.description_folded, part) > 0,
            )
        )
    return conditions


def _storable(value: str) -> bool:
    """Say whether a text column of both databases can hold the value at all."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _order(collection: Collection, sort: str) -> list[ColumnElement[Any]]:
    line, version = collection.line, collection.version
    columns: dict[str, InstrumentedAttribute[Any]] = {
        "name": line.name,
        "created_at": version.created_at,
        "size": version.file_size,
    }
    if sort not in SORTS:
        raise InputError(f"{sort!r} is not a sort order. Use one of {SORTS}.")
    column = columns[sort.removeprefix("-")]
    first = column.desc() if sort.startswith("-") else column.asc()
    return [first] if column is columns["name"] else [first, line.name.asc()]


# -------------------------------------------------------------------------- claims


def get_or_create_line(
    session: Session, collection: Collection, name: str, owner_id: str, now: datetime
) -> LineRow:
    """Return the line, made if need be, locked until the transaction ends."""
    line = collection.line
    while True:
        found = session.scalars(
            _fresh(select(line).where(line.name == name).with_for_update())
        ).one_or_none()
        if found is not None:
            return cast("LineRow", found)
        _insert(session, line, name=name, owner_id=owner_id, created_at=now)


def find_claim(
    session: Session, collection: Collection, line: LineRow
) -> VersionRow | None:
    """Return the line's ``storing`` version."""
    version = collection.version
    return session.scalars(
        _fresh(
            select(version).where(version.line_id == line.id, version.state == _STORING)
        )
    ).one_or_none()


def insert_claim(
    session: Session,
    collection: Collection,
    line: LineRow,
    **values: Any,  # noqa: ANN401 - the columns of the collection's versions
) -> VersionRow:
    """Claim the line's next number: insert its version in state ``storing``.

    Args:
        **values: Every column of a version that the publisher decides, with
            ``lease_token`` and ``lease_expires_at``.

    Raises:
        AlreadyExistsError: The line has a claim, or the number is taken.
    """
    row = _insert(
        session,
        collection.version,
        line_id=line.id,
        version=line.current_version + 1,
        **values,
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
    return _update_claim(
        session, collection, version_id, lease_token, lease_expires_at=new_expiry
    )


def take_over_claim(  # noqa: PLR0913 - the claim, the lease and the time
    session: Session,
    collection: Collection,
    version_id: UUID,
    old_token: str,
    new_token: str,
    new_expiry: datetime,
    now: datetime,
) -> bool:
    """Make an expired claim ours; false if it is not expired, or no longer there."""
    return _update_claim(
        session,
        collection,
        version_id,
        old_token,
        collection.version.lease_expires_at <= now,
        lease_token=new_token,
        lease_expires_at=new_expiry,
    )


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
    line = _lock_line(session, collection, version_id)
    if line is None or not _update_claim(
        session,
        collection,
        version_id,
        lease_token,
        state=PUBLISHED,
        published_at=now,
        lease_token=None,
        lease_expires_at=None,
    ):
        return False
    line.current_version += 1
    session.flush()
    return True


def expired_claims(
    session: Session, collection: Collection, now: datetime, limit: int
) -> list[tuple[LineRow, VersionRow]]:
    """Return claims whose lease ran out, the oldest first, with their lines."""
    line, version = collection.line, collection.version
    rows = session.execute(
        _fresh(
            select(line, version)
            .join(version, version.line_id == line.id)
            .where(version.state == _STORING, version.lease_expires_at <= now)
            .order_by(version.lease_expires_at, version.id)
            .limit(limit)
        )
    )
    return [cast("tuple[LineRow, VersionRow]", tuple(row)) for row in rows]


def object_is_named(session: Session, key: str) -> bool:
    """Say whether a version, published or claimed, names this object."""
    return bool(named_objects(session, [key]))


def named_objects(session: Session, keys: Keys[str]) -> set[str]:
    """Return those of the keys that a version, published or claimed, names."""
    wanted, named = sorted(set(keys)), set[str]()
    for start in range(0, len(wanted), _KEYS_AT_ONCE):
        batch = wanted[start : start + _KEYS_AT_ONCE]
        for version in (MODELS.version, DATASETS.version):
            for column in (
                version.object_key,
                version.sidecar_key,
                version.record_key,
            ):
                found = session.scalars(select(column).where(column.in_(batch)))
                named.update(key for key in found if key is not None)
    return named


def _lock_line(
    session: Session, collection: Collection, version_id: UUID
) -> LineRow | None:
    """Lock a version's line. Before the version, as all do: no deadlock."""
    line, version = collection.line, collection.version
    return session.scalars(
        _fresh(
            select(line)
            .join(version, version.line_id == line.id)
            .where(version.id == version_id)
            .with_for_update(of=line)
        )
    ).one_or_none()


def _update_claim(
    session: Session,
    collection: Collection,
    version_id: UUID,
    token: str,
    *conditions: ColumnElement[bool],
    **values: Any,  # noqa: ANN401 - any columns
) -> bool:
    version = collection.version
    updated = session.execute(
        update(version)
        .where(*_ours(collection, version_id, token), *conditions)
        .values(**values)
        .returning(version.id)
    )
    return updated.one_or_none() is not None


def _ours(
    collection: Collection, version_id: UUID, token: str
) -> tuple[ColumnElement[bool], ...]:
    version = collection.version
    return (
        version.id == version_id,
        version.lease_token == token,
        version.state == _STORING,
    )


# ----------------------------------------------------------------- users and audit


def find_user(session: Session, user_id: str) -> UserRow | None:
    """Return a user, disabled or not."""
    if not _storable(user_id):
        return None
    return session.scalars(
        _fresh(select(UserRow).where(UserRow.id == user_id))
    ).one_or_none()


def insert_user(
    session: Session,
    *,
    user_id: str,
    permissions: Sequence[str],
    secret_hash: str,
    now: datetime,
) -> UserRow:
    """Add a user.

    Raises:
        AlreadyExistsError: There is one of this name.
    """
    row = _insert(
        session,
        UserRow,
        id=user_id,
        permissions=list(permissions),
        secret_hash=secret_hash,
        created_at=now,
    )
    if row is None:
        raise AlreadyExistsError(f"There is a user {user_id!r} already.")
    return row


def list_users(session: Session) -> list[UserRow]:
    """Return all users, by name."""
    return list(session.scalars(_fresh(select(UserRow).order_by(UserRow.id))))


def set_user_disabled(
    session: Session, user_id: str, disabled_at: datetime | None
) -> bool:
    """Disable a user, or with ``None`` enable again; false if there is none."""
    updated = session.execute(
        update(UserRow)
        .where(UserRow.id == user_id)
        .values(disabled_at=disabled_at)
        .returning(UserRow.id)
    )
    return updated.one_or_none() is not None


def insert_audit_event(  # noqa: PLR0913 - the columns of the table
    session: Session,
    *,
    at: datetime,
    principal: str,
    action: str,
    subject: str,
    detail: dict[str, Any],
) -> None:
    """Note what a principal did, in the transaction in which it was done."""
    session.add(
        AuditEventRow(
            at=at, principal=principal, action=action, subject=subject, detail=detail
        )
    )
    session.flush()


# ---------------------------------------------------------------------- statements


def _published(collection: Collection) -> Select[Any]:
    line, version = collection.line, collection.version
    return (
        select(line, version)
        .join(version, version.line_id == line.id)
        .where(version.state == _PUBLISHED)
    )


def _current(collection: Collection) -> Select[Any]:
    line, version = collection.line, collection.version
    return _published(collection).where(version.version == line.current_version)


def _first(
    session: Session, statement: Select[Any]
) -> tuple[LineRow, VersionRow] | None:
    row = session.execute(_fresh(statement)).one_or_none()
    return None if row is None else cast("tuple[LineRow, VersionRow]", tuple(row))


def _fresh(statement: _S) -> _S:
    """Let a statement read rows anew that the session has read before."""
    return statement.execution_options(populate_existing=True)


def _insert(session: Session, table: type[_R], **values: Any) -> _R | None:  # noqa: ANN401 - any columns
    """Insert a row; ``None`` if a unique constraint is against it."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    insert = sqlite.insert if is_sqlite else postgresql.insert
    return session.scalars(
        insert(table).values(**values).on_conflict_do_nothing().returning(table)
    ).one_or_none()
