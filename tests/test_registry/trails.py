"""Audit trails: made, emptied, and tampered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from vision_o3.db import models as tables
from vision_o3.db.audit import Event, append_event
from vision_o3.db.engine import Database

AT = datetime(2026, 11, 24, 14, 0, 0, 7, tzinfo=UTC)


def empty(database: Database) -> None:
    """Remove all rows of a PostgreSQL database, as its owner can."""
    names = ", ".join(table.name for table in tables.Base.metadata.sorted_tables)
    with tampering(database) as session:
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        session.execute(text("ALTER TABLE audit_events ENABLE TRIGGER USER"))


@contextmanager
def tampering(database: Database) -> Iterator[Session]:
    """Open a transaction as somebody has who owns the database."""
    with database.write() as session:
        if database.dialect == "sqlite":
            for change in ("update", "delete"):
                name = f"audit_events_no_{change}"
                session.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        else:
            session.execute(text("ALTER TABLE audit_events DISABLE TRIGGER USER"))
        yield session


def add_events(database: Database, *subjects: str, **more: Any) -> list[Event]:
    """Add events, each in a transaction of its own."""
    added = []
    for number, subject in enumerate(subjects):
        values: dict[str, Any] = {
            "at": AT + timedelta(seconds=number),
            "principal": "ann",
            "action": "version.published",
            "detail": {"cid": "ü", "size": 1.5, "n": number},
            **more,
        }
        with database.write() as session:
            added.append(append_event(session, subject=subject, **values))
    return added
