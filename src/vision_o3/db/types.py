"""Column types that give the same values on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, String
from sqlalchemy.types import TypeDecorator

from vision_o3.content.cid import CID

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect


class UTCDateTime(TypeDecorator[datetime]):
    """An aware ``datetime`` in UTC, exact to the microsecond, in and out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        """Refuse a time without a zone: nobody knows when it is."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone.")
        value = value.astimezone(UTC)
        # SQLite holds text without a zone, always UTC, so that it sorts as time.
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        """Return the time in UTC, whatever the session's zone."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return value.replace(tzinfo=UTC)
        return value.astimezone(UTC)


class CIDType(TypeDecorator[CID]):
    """A ``CID``, held as its text."""

    impl = String(59)
    cache_ok = True

    def process_bind_param(
        self,
        value: CID | None,
        dialect: Dialect,  # noqa: ARG002 - the same on all databases
    ) -> str | None:
        """Return the text form."""
        return None if value is None else str(value)

    def process_result_value(
        self,
        value: Any | None,  # noqa: ANN401 - what the driver returns
        dialect: Dialect,  # noqa: ARG002 - the same on all databases
    ) -> CID | None:
        """Return the CID of the text form."""
        return None if value is None else CID.parse(value)
