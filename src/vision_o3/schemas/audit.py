"""The audit trail on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from vision_o3.schemas.versions import PageQuery, StrictQuery

_HASH = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_EXAMPLE: dict[str, Any] = {
    "chain": "9356c353126e194e",
    "seq": 42,
    "hash": _HASH,
    "at": "2026-11-25T14:00:00.000007Z",
    "principal": "ann",
    "action": "version.published",
    "subject": "models/yolov11-nano/v2",
    "detail": {"size": 10_711_040},
    "address": "192.0.2.7",
    "request_id": "0b0e7f3c5d1e4a0f9d3a6c2b",
}


_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # a day before the first year, or after the last
        return _FIRST if moment.year == 1 else _LAST


def _as_text(given: object) -> object:
    """Let no numbers through: only text says what it counts from, and in which zone."""
    if isinstance(given, str) and given[4:5] != "-":
        raise ValueError("give a day and time, such as 2026-11-25T14:00:00Z")
    return given


Moment = Annotated[AwareDatetime, BeforeValidator(_as_text), AfterValidator(_in_utc)]


class AuditEvent(BaseModel):
    """Something that a principal did."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    chain: str = Field(description="The database that it was first written to.")
    seq: int = Field(ge=1, description="Its place in the chain.")
    hash: str = Field(description="SHA-256 of the event and of the hash before it.")
    at: datetime
    principal: str
    action: str
    subject: str
    detail: dict[str, Any]
    address: str | None = Field(description="Where the request came from.")
    request_id: str | None = Field(description="As in the gateway's log.")


class AuditPage(BaseModel):
    """Some of the events, newest first."""

    items: list[AuditEvent]
    page: int
    page_size: int
    total: int = Field(description="Events on all pages.")


class AuditHead(BaseModel):
    """Where the chain of this gateway's database ends now."""

    chain: str
    seq: int = Field(ge=0, description="0: there is no event yet.")
    hash: str = Field(examples=[_HASH])
    head: str = Field(
        description="All three, as `vision-o3 admin audit verify --head` takes them.",
        examples=[f"9356c353126e194e:42:{_HASH}"],
    )


class AuditFilters(StrictQuery):
    """Which events of the audit trail."""

    principal: str | None = Field(
        default=None, max_length=255, description="Who did it.", examples=["ann"]
    )
    action: str | None = Field(
        default=None,
        max_length=64,
        description="What was done, whole or as far as a dot.",
        examples=["version.published", "user"],
    )
    subject: str | None = Field(
        default=None,
        max_length=512,
        description="To what, whole or as far as a slash.",
        examples=["models/yolov11-nano", "users/ann"],
    )
    since: Moment | None = Field(default=None, description="The first moment.")
    until: Moment | None = Field(
        default=None, description="The moment after the last one."
    )


class AuditQuery(AuditFilters, PageQuery):
    """Which page of which events."""
