"""Listing lines by their current versions: filters, order, pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, cast, false, func, or_, select

from vision_o3.db.statements import FRESH, Found, current, is_sqlite, pairs, storable
from vision_o3.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import InstrumentedAttribute, Session

    from vision_o3.db.models import Collection, VersionRow

SORTS = ("name", "-name", "created_at", "-created_at", "size", "-size")


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
    quantized: bool | None = None
    """What the facts say; those of other formats pass neither."""
    safety: str | None = None
    """``safe`` or ``unsafe``, likewise."""
    annotations: str | None = None
    """How images are annotated: ``coco``, ``voc`` …"""
    has_class: str | None = None
    """A class that is annotated."""
    lines: frozenset[str] | None = None
    """Only these, by name."""


def list_latest(
    session: Session,
    collection: Collection,
    filters: LineFilters,
    sort: str,
    offset: int,
    limit: int,
) -> tuple[int, list[Found]]:
    """Return how many lines pass all filters, and some with their current versions.

    ``sort`` is one of ``SORTS``; equals follow by id, so that paging is stable.

    Raises:
        InputError: Not a sort order.
    """
    conditions = _conditions(session, collection, filters)
    rows = session.execute(
        current(collection)
        .where(*conditions)
        .order_by(*_order(collection, sort))
        .offset(offset)
        .limit(limit),
        execution_options=FRESH,
    )
    line, version = collection.line, collection.version
    counted = select(func.count()).select_from(version).where(version.is_current)
    if filters.owner is not None or filters.q or filters.lines is not None:
        counted = counted.join(line, version.line_id == line.id)
    total = session.execute(counted.where(*conditions)).scalar_one()
    return total, pairs(rows)


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
        filters.has_class,
        *filters.tags,
    )
    if any(value is not None and not storable(value) for value in texts):
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
    if filters.lines is not None:
        conditions.append(line.name.in_(filters.lines))
    if filters.owner is not None:
        conditions.append(line.owner_id == filters.owner)
    conditions += [
        version.id.in_(select(tag.version_id).where(tag.tag == wanted))
        for wanted in filters.tags
    ]
    conditions += _about_facts(session, version, filters)
    if filters.q:
        # Not LIKE: it would need escapes, and SQLite limits its patterns.
        position = func.instr if is_sqlite(session) else func.strpos
        part = filters.q.casefold()
        conditions.append(
            or_(
                position(line.name, part) > 0,
                position(version.description_folded, part) > 0,
            )
        )
    return conditions


def _about_facts(
    session: Session, version: type[VersionRow], filters: LineFilters
) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on what was read from the files themselves."""
    facts = version.facts
    if filters.quantized is not None:
        yield facts["quantized"].as_boolean() == filters.quantized
    if filters.safety is not None:
        yield facts["safety", "verdict"].as_string() == filters.safety
    if filters.annotations is not None:
        yield facts["annotations", "format"].as_string() == filters.annotations
    if filters.has_class is not None:
        yield _has_class(session, version, filters.has_class)


def _has_class(
    session: Session, version: type[VersionRow], name: str
) -> ColumnElement[bool]:
    # Not by SQLAlchemy's paths: the name is anybody's text, and they do not quote it.
    if not is_sqlite(session):
        count = func.json_extract_path_text(
            version.facts, "annotations", "classes", name
        )
        return cast(count, BigInteger) > 0
    if '"' in name:
        return false()  # SQLite before 3.45 cannot say it
    # Labels are compared as they are stored: with what is not ASCII escaped.
    path = f'$.annotations.classes."{json.dumps(name)[1:-1]}"'
    return func.json_extract(version.facts, path) > 0


def _order(collection: Collection, sort: str) -> list[ColumnElement[Any]]:
    if sort not in SORTS:
        raise InputError(f"{sort!r} is not a sort order. Use one of {SORTS}.")
    line, version = collection.line, collection.version
    orders: dict[str, list[InstrumentedAttribute[Any]]] = {
        "name": [line.name],
        "created_at": [version.created_at, version.id],
        "size": [version.file_size, version.id],
    }
    columns = orders[sort.removeprefix("-")]
    # All in one direction, so that an index gives the order.
    return [
        column.desc() if sort.startswith("-") else column.asc() for column in columns
    ]
