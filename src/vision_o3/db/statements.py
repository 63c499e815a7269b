"""What the query modules share: the joins, and the insert that may lose a race."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from sqlalchemy import ColumnElement, Select, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite

from vision_o3.db.models import Base, Collection, LineRow, VersionRow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Row
    from sqlalchemy.orm import Session

Found: TypeAlias = tuple[LineRow, VersionRow]

# Literals, not parameters: a planner must see them to use a partial index.
IS_STORING: ColumnElement[str] = literal_column("'storing'")
IS_PUBLISHED: ColumnElement[str] = literal_column("'published'")

FRESH = {"populate_existing": True}
"""Execution options: read rows anew that the session has read before."""

_RowT = TypeVar("_RowT", bound=Base)


def published(collection: Collection) -> Select[Any, Any]:
    """Select published versions with their lines."""
    line, version = collection.line, collection.version
    return (
        select(line, version)
        .join(version, version.line_id == line.id)
        .where(version.state == IS_PUBLISHED)
    )


def current(collection: Collection) -> Select[Any, Any]:
    """Select the current versions with their lines."""
    line, version = collection.line, collection.version
    return (
        select(line, version)
        .join(version, version.line_id == line.id)
        .where(version.is_current)
    )


def pairs(rows: Iterable[Row[Any, Any]]) -> list[Found]:
    """Return the rows of such a statement."""
    return [cast("Found", tuple(row)) for row in rows]


def insert(session: Session, table: type[_RowT], **values: object) -> _RowT | None:
    """Insert a row; ``None`` if a unique constraint is against it."""
    make = sqlite.insert if is_sqlite(session) else postgresql.insert
    return session.scalars(
        make(table).values(**values).on_conflict_do_nothing().returning(table)
    ).one_or_none()


def is_sqlite(session: Session) -> bool:
    """Say which of the two databases this is."""
    return session.get_bind().dialect.name == "sqlite"


def storable(value: str) -> bool:
    """Say whether a text column of both databases can hold the value at all."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def all_storable(value: object) -> bool:
    """Say whether text columns can hold all texts in a JSON value."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return all(map(storable, value)) and all(map(all_storable, value.values()))
    return not isinstance(value, list) or all(map(all_storable, value))
