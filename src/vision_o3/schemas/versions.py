"""What models and datasets have in common on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PAGE_SIZE = 200
# What the OpenAPI document says of texts that the registry parses by itself, with codes
# and sentences of its own.
NAME_PATTERN = "^(?!cid$)[a-z0-9][a-z0-9._-]{0,127}$"
VERSION_PATTERN = "^[1-9][0-9]{0,8}$"
CID_PATTERN = "^baf(krei|ybei)[a-h][a-z2-7]{50}[aeimquy4]$"
"""CIDv1 in base32: raw or dag-pb, sha2-256."""
REASON_PATTERN = r"^(?!\s)[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*(?<!\s)$"
"""One line of text, with no space at either end."""
Sort = Literal["name", "-name", "created_at", "-created_at", "size", "-size"]


class VersionLinks(BaseModel):
    """Where to go on from a version; paths on this gateway."""

    self: str
    download: str
    dag: str | None = Field(
        default=None,
        exclude_if=lambda path: path is None,
        description="The sidecar; absent for content of one leaf (at most 1 MiB).",
    )
    manifest: str | None = Field(
        default=None,
        exclude_if=lambda path: path is None,
        description="The list of an archive's files; absent for what is none.",
    )


ALLOW_BLOCKED = "Whether a version is wanted although it is blocked."


class WithdrawalRead(BaseModel):
    """Why a version is not to be used any more."""

    state: Literal["deprecated", "blocked", "purged"] = Field(
        description="`deprecated`: served as before. `blocked`: not the latest, and "
        "its bytes only with `allow_blocked=true`. `purged`: its bytes are gone for "
        "good."
    )
    reason: str
    at: datetime


class WithdrawalWrite(BaseModel):
    """What is to become of a version."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"state": "blocked", "reason": "It misses people at night. Use v4."}
            ]
        },
    )

    state: Literal["deprecated", "blocked"]
    reason: str = Field(
        description="One line: why, and what to use instead.",
        json_schema_extra={
            "minLength": 1,
            "maxLength": 500,
            "pattern": REASON_PATTERN,
        },
    )


class VersionRead(BaseModel):
    """One published version, as answered by every route that names it."""

    id: str
    name: str
    version: int = Field(ge=1)
    cid: str = Field(description="Names the file's bytes: CIDv1, unixfs-v1-2025.")
    file_size: int = Field(ge=0, description="Bytes.")
    description: str
    tags: list[str]
    owner_id: str = Field(description="Who published the first version.")
    created_at: datetime
    withdrawal: WithdrawalRead | None = Field(
        default=None,
        exclude_if=lambda withdrawal: withdrawal is None,
        description="Absent for a version that may be used.",
    )
    links: VersionLinks


class StrictQuery(BaseModel):
    """Query parameters; one that is not among them is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: dict[str, Any]) -> dict[str, Any]:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"unknown parameter {unknown[0][:64]!r}; "
                f"there are {', '.join(sorted(known))}"
            )
        return values


class PageQuery(StrictQuery):
    """Which page of a list."""

    page: Annotated[int, Field(ge=1, le=1_000_000, description="From 1.")] = 1
    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = 50


class ListQuery(PageQuery):
    """Which lines of a collection, judged by their latest versions."""

    tags: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="All of them; repeated or separated by commas.",
    )
    owner: str | None = Field(default=None, max_length=128)
    q: str | None = Field(
        default=None, max_length=200, description="Part of name or description."
    )
    sort: Sort = Field(default="name", description="`-` sorts downwards.")

    def wanted_tags(self) -> tuple[str, ...]:
        """Return the tags asked for, one by one."""
        return split_tags(self.tags)

    @model_validator(mode="after")
    def _check_tags(self) -> Self:
        if len(self.wanted_tags()) > 64:  # noqa: PLR2004 - as for the list above
            raise ValueError("at most 64 tags")
        return self


def split_tags(given: list[str]) -> tuple[str, ...]:
    """Return tags that were repeated or separated by commas, one by one."""
    parts = (part.strip() for text in given for part in text.split(","))
    return tuple(part for part in parts if part)
