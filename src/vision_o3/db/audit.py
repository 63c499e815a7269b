"""The audit trail: events, each chained to the one before by its hash.

The hash is SHA-256 over the JSON text of a list: the format's number, the chain, the
place in it, the hash before (64 zeros at the first), and what happened. It never
changes: events of every age must verify.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Text,
    cast,
    func,
    insert,
    or_,
    select,
)

from vision_o3.db.models import AuditEventRow, AuditHeadRow
from vision_o3.db.statements import FRESH, all_storable, is_sqlite, storable
from vision_o3.db.statements import insert as insert_one

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

HASH_FORMAT = 1
FIRST = "0" * 64
"""Stands for the hash before the first event."""
LONGEST_SUBJECT = 512
"""Characters. What an index of PostgreSQL holds is 2,704 bytes."""
MAX_DETAIL_SIZE = 1 << 20
"""Bytes of JSON text."""
_LONGEST = {"principal": 255, "action": 64, "address": 64, "request_id": 64}
"""Characters; the columns'."""
_READ_LONGEST = {**_LONGEST, "chain": 64, "hash": 64, "subject": 1 << 16}
_HEAD = 1
"""The id of the only row that says where the chain ends."""
_BATCH = 1000
_TIME = "YYYY-MM-DD HH24:MI:SS.US"
"""PostgreSQL's words for how SQLite holds a time."""


@dataclass(frozen=True, slots=True)
class Event:
    """An audit event."""

    chain: str
    seq: int
    hash: str
    at: datetime
    principal: str
    action: str
    subject: str
    detail: dict[str, Any]
    address: str | None
    request_id: str | None

    def hash_after(self, before: str) -> str:
        """Return the hash that the event has if it follows the one with that hash.

        Its own ``hash`` has no part in it.

        Raises:
            ValueError: Its detail is no JSON: it has a number that is not finite.
        """
        told = [
            HASH_FORMAT,
            self.chain,
            self.seq,
            before,
            self.at.astimezone(UTC).isoformat(timespec="microseconds"),
            self.principal,
            self.action,
            self.subject,
            self.detail,
            self.address,
            self.request_id,
        ]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row of the trail that is no event any more."""

    chain: str
    seq: int | None
    hash: str
    reason: str
    """The end of a sentence."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which events to list. A value that is ``None`` filters nothing.

    Args:
        principal: Who did it.
        action: What was done, as ``version.published``, or as far as a dot.
        subject: To what, as ``models/yolo/v2``, or as far as a slash.
        since: The first moment.
        until: The moment after the last.
    """

    principal: str | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def new_chain() -> str:
    """Return a name for a chain that no other has."""
    return secrets.token_hex(8)


# --------------------------------------------------------------------------- writing


def append_event(
    session: Session,
    *,
    at: datetime,
    principal: str,
    action: str,
    subject: str,
    detail: dict[str, Any],
    address: str | None = None,
    request_id: str | None = None,
) -> Event:
    """Add an event to the end of this database's chain.

    Locks the chain until the transaction ends: do it last. Events are written one
    after the other, by all gateways. Texts that a database cannot hold as they are,
    which may be a caller's, are kept as near as it can: a change must not fail, or go
    unseen, because of them.

    Raises:
        TypeError, ValueError: The detail is no JSON.
    """
    texts = {
        name: None if value is None else _kept_text(value, longest)
        for (name, longest), value in zip(
            _LONGEST.items(), (principal, action, address, request_id), strict=True
        )
    }
    # As it will be read back: names are texts, tuples are lists.
    detail = _kept(json.loads(json.dumps(detail, allow_nan=False)))
    head = lock_head(session)
    values: dict[str, Any] = {
        **texts,
        "chain": head.chain,
        "seq": head.seq + 1,
        "at": at,
        "subject": _kept_text(subject, LONGEST_SUBJECT),
        "detail": detail,
    }
    event = Event(hash="", **values)
    event = replace(event, hash=event.hash_after(head.hash))
    add_events(session, [event])
    head.seq, head.hash = event.seq, event.hash
    session.flush()
    return event


def lock_head(session: Session) -> AuditHeadRow:
    """Return the end of this database's chain, locked until the transaction ends.

    Begins a chain if there is none: the row was removed, and whoever verifies the
    trail sees it by the chain before.
    """
    while True:
        head = session.scalars(
            select(AuditHeadRow).where(AuditHeadRow.id == _HEAD).with_for_update(),
            execution_options=FRESH,
        ).one_or_none()
        if head is not None:
            return head
        insert_one(
            session, AuditHeadRow, id=_HEAD, chain=new_chain(), seq=0, hash=FIRST
        )


def add_events(session: Session, events: Sequence[Event]) -> None:
    """Insert events as they are, in their order. The head is locked."""
    if events:
        session.execute(insert(AuditEventRow), [_values_of(each) for each in events])


def _values_of(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in Event.__slots__}


def _kept(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a JSON value whose texts a backup and both databases can hold."""
    if isinstance(value, str):
        return _kept_text(value, MAX_DETAIL_SIZE)
    if isinstance(value, dict):
        return {
            _kept_text(name, MAX_DETAIL_SIZE): _kept(each)
            for name, each in value.items()
        }
    return [_kept(each) for each in value] if isinstance(value, list) else value


def _kept_text(text: str, longest: int) -> str:
    if not storable(text):
        text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return text[:longest]


# --------------------------------------------------------------------------- reading


def find_head(session: Session) -> AuditHeadRow | None:
    """Return the end of this database's chain."""
    return session.scalars(
        select(AuditHeadRow).where(AuditHeadRow.id == _HEAD), execution_options=FRESH
    ).one_or_none()


def hashes_between(
    session: Session, chain: str, first: int, last: int
) -> dict[int, str]:
    """Return the hashes of a chain's events from a place to another, by place."""
    event = AuditEventRow
    rows = session.execute(
        select(event.seq, event.hash).where(
            event.chain == chain, event.seq.between(first, last)
        )
    )
    return {row[0]: row[1] for row in rows}


def list_events(
    session: Session, filters: Filters, offset: int, limit: int
) -> tuple[int, list[Event]]:
    """Return how many events pass all filters, and some of them, newest first."""
    event = AuditEventRow
    conditions = _conditions(filters)
    if conditions is None:
        return 0, []
    total = session.execute(
        select(func.count()).select_from(event).where(*conditions)
    ).scalar_one()
    rows = session.scalars(
        select(event)
        .where(*conditions)
        .order_by(event.at.desc(), event.id.desc())
        .offset(offset)
        .limit(limit)
    )
    return total, [_event_of(row) for row in rows]


def last_id(session: Session) -> int:
    """Return the id of the event that came last; 0 while there is none."""
    return session.execute(select(func.max(AuditEventRow.id))).scalar_one() or 0


def events_between(
    session: Session, filters: Filters, after: int, last: int, limit: int
) -> list[tuple[int, Event]]:
    """Return events that pass all filters, after an id up to another, with their ids.

    In the order in which they came: ids grow in the order of commits, as all who write
    hold the head.
    """
    event = AuditEventRow
    conditions = _conditions(filters)
    if conditions is None:
        return []
    rows = session.scalars(
        select(event)
        .where(event.id > after, event.id <= last, *conditions)
        .order_by(event.id)
        .limit(limit)
    )
    return [(row.id, _event_of(row)) for row in rows]


def all_events(session: Session) -> Iterator[Event | Unreadable]:
    """Yield every row, by chain and place, some held at a time.

    Rows that somebody wrote by hand need not be events: SQLite holds whatever it is
    given, and neither database knows what a detail is.
    """
    columns = [_raw(session, name) for name in Event.__slots__]
    rows = session.execute(
        select(*columns).order_by(AuditEventRow.chain, AuditEventRow.seq),
        execution_options={"yield_per": _BATCH},
    )
    for row in rows:
        yield _read(dict(zip(Event.__slots__, row, strict=True)))


def _conditions(filters: Filters) -> list[ColumnElement[bool]] | None:
    """Return what events must be; ``None``: none can."""
    event = AuditEventRow
    conditions: list[ColumnElement[bool]] = []
    for column, wanted, mark in (
        (event.principal, filters.principal, ""),
        (event.action, filters.action, "."),
        (event.subject, filters.subject, "/"),
    ):
        if wanted is None:
            continue
        if not storable(wanted):
            return None
        below = column.startswith(wanted + mark, autoescape=True)
        conditions.append(or_(column == wanted, below) if mark else column == wanted)
    if filters.since is not None:
        conditions.append(event.at >= filters.since)
    if filters.until is not None:
        conditions.append(event.at < filters.until)
    return conditions


def _event_of(row: AuditEventRow) -> Event:
    return Event(**{name: getattr(row, name) for name in Event.__slots__})


def _raw(session: Session, name: str) -> ColumnElement[bytes | None]:
    """Return a column as bytes of text, which no value makes fail."""
    column: ColumnElement[Any] = getattr(AuditEventRow, name)
    if is_sqlite(session):
        return cast(column, LargeBinary)
    text = (
        func.to_char(func.timezone("UTC", column), _TIME)
        if name == "at"
        else cast(column, Text)
    )
    return func.convert_to(text, "UTF8", type_=LargeBinary)


def _read(row: Mapping[str, bytes | None]) -> Event | Unreadable:
    chain = (row["chain"] or b"").decode(errors="backslashreplace")
    seq: int | None = None
    name = "seq"
    try:
        seq = _whole(_text(row["seq"]))
        texts: dict[str, str] = {}
        for name in ("chain", "hash", "principal", "action", "subject"):
            texts[name] = _text(row[name], _READ_LONGEST[name])
        maybe: dict[str, str | None] = {}
        for name in ("address", "request_id"):
            raw = row[name]
            maybe[name] = None if raw is None else _text(raw, _READ_LONGEST[name])
        name = "at"
        at = _moment(_text(row["at"]))
        name = "detail"
        detail = _mapping(_text(row["detail"]))
    except (ValueError, RecursionError):
        digest = (row["hash"] or b"").decode(errors="replace")
        return Unreadable(chain, seq, digest, f"its {name} cannot be read")
    return Event(
        **texts,
        seq=seq,
        at=at,
        detail=detail,
        address=maybe["address"],
        request_id=maybe["request_id"],
    )


def _text(raw: bytes | None, longest: int = MAX_DETAIL_SIZE) -> str:
    text = (raw or b"").decode()
    if raw is None or len(text) > longest or "\0" in text:
        raise ValueError
    return text


def _whole(text: str) -> int:
    value = int(text)
    if str(value) != text or value < 1:
        raise ValueError
    return value


def _moment(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    if value.isoformat(" ", "microseconds") != text:
        raise ValueError
    return value.replace(tzinfo=UTC)


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(value, dict) or not all_storable(value):
        raise ValueError
    return value


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; other readers may take another of two equal names."""
    pairs = list(pairs)
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def _refuse(constant: str) -> float:
    raise ValueError(constant)
