"""The tables. Models and datasets are the same machinery in two sets of tables.

A *line* is a named series; its *versions* are immutable once ``published``. A line
without a published version (``current_version`` 0) is invisible. A version in state
``storing`` is a claim: an upload at work, guarded by a lease; one for each line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from vision_o3.content.cid import CID
from vision_o3.db.types import CIDType, UTCDateTime

if TYPE_CHECKING:
    from sqlalchemy.engine.default import DefaultExecutionContext

STORING = "storing"
PUBLISHED = "published"
DEPRECATED = "deprecated"
BLOCKED = "blocked"
PURGED = "purged"

# Sorted by code point everywhere, as SQLite and Python do, whatever the database's
# language: paging must not depend on it.
_NAME = String(128).with_variant(String(128, collation="C"), "postgresql")
_ID = String(255).with_variant(String(255, collation="C"), "postgresql")
_KEY = Text()
_SORTED_KEY = Text().with_variant(Text(collation="C"), "postgresql")
_AUDIT_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts INTEGER only
_CHAIN = String(64).with_variant(String(64, collation="C"), "postgresql")
_WHERE_STORING: dict[str, Any] = {
    "sqlite_where": text("state = 'storing'"),
    "postgresql_where": text("state = 'storing'"),
}
_WHERE_CURRENT: dict[str, Any] = {
    "sqlite_where": text("is_current = 1"),
    "postgresql_where": text("is_current"),
}
_WHERE_PURGED: dict[str, Any] = {
    "sqlite_where": text("withdrawal = 'purged'"),
    "postgresql_where": text("withdrawal = 'purged'"),
}


def _folded(context: DefaultExecutionContext) -> str:
    values: dict[str, Any] = context.get_current_parameters()  # type: ignore[no-untyped-call]  # as SQLAlchemy has it
    description: str = values["description"]
    return description.casefold()


class Base(DeclarativeBase):
    """Holds the metadata of all tables, with the rule that names constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - as SQLAlchemy reads it
        datetime: UTCDateTime,
        CID: CIDType,
        UUID: Uuid,
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class LineColumns:
    """What a model and a dataset have in common as named lines."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(_NAME)
    current_version: Mapped[int] = mapped_column(default=0)
    """The highest published number; 0 while there is none."""
    created_at: Mapped[datetime]
    owner_id: Mapped[str] = mapped_column(String(255), index=True)
    """Who claimed the line first."""


class VersionColumns:
    """What a model's and a dataset's versions have in common."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    version: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default=STORING)
    is_current: Mapped[bool] = mapped_column(default=False)
    """Whether this is the line's latest version that is neither blocked nor purged.

    Lists are of these alone.
    """
    cid: Mapped[CID] = mapped_column(index=True)
    file_size: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""
    description: Mapped[str] = mapped_column(Text)
    description_folded: Mapped[str] = mapped_column(Text, default=_folded)
    """For searching whatever the case: the databases do not fold alike."""
    tags: Mapped[list[str]]
    facts: Mapped[dict[str, Any]]
    owner_id: Mapped[str] = mapped_column(String(255))
    """Who published this version."""
    object_key: Mapped[str] = mapped_column(_KEY, index=True)
    """Where the artifact lies; shared by versions of equal content."""
    sidecar_key: Mapped[str | None] = mapped_column(_KEY, index=True)
    record_key: Mapped[str] = mapped_column(_KEY, index=True)
    created_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    lease_token: Mapped[str | None] = mapped_column(String(64))
    """Who holds the claim. Set in state ``storing`` only."""
    lease_expires_at: Mapped[datetime | None]
    withdrawal: Mapped[str | None] = mapped_column(String(16))
    """``deprecated``, ``blocked`` or ``purged``; set with what follows."""
    withdrawal_number: Mapped[int] = mapped_column(default=0)
    """Which of its documents in the store says so; each change is another one."""
    withdrawn_at: Mapped[datetime | None]
    withdrawn_by: Mapped[str | None] = mapped_column(String(255))
    withdrawn_by_admin: Mapped[bool] = mapped_column(default=False)
    """Whether the line's owner may not lift it."""
    withdrawn_reason: Mapped[str | None] = mapped_column(Text)


def _line_constraints() -> tuple[UniqueConstraint | CheckConstraint, ...]:
    return (
        UniqueConstraint("name"),
        CheckConstraint("current_version >= 0", "current_version"),
    )


def _version_constraints(
    table: str, line_id: str, *labels: str
) -> tuple[UniqueConstraint | CheckConstraint | Index, ...]:
    return (
        UniqueConstraint(line_id, "version"),
        CheckConstraint("version >= 1", "version"),
        CheckConstraint("file_size >= 0", "file_size"),
        CheckConstraint(
            "(state = 'storing' AND lease_token IS NOT NULL"
            " AND lease_expires_at IS NOT NULL AND published_at IS NULL)"
            " OR (state = 'published' AND lease_token IS NULL"
            " AND lease_expires_at IS NULL AND published_at IS NOT NULL)",
            "state",
        ),
        CheckConstraint("state = 'published' OR NOT is_current", "is_current"),
        Index(f"ix_{table}_owner", "owner_id", "file_size"),
        Index(f"uq_{table}_storing", line_id, unique=True, **_WHERE_STORING),
        Index(f"uq_{table}_current", line_id, unique=True, **_WHERE_CURRENT),
        Index(f"ix_{table}_purged", "cid", **_WHERE_PURGED),
        *(
            Index(f"ix_{table}_current_{column}", column, "id", **_WHERE_CURRENT)
            for column in ("created_at", "file_size", *labels)
        ),
    )


class ModelRow(LineColumns, Base):
    """A named model."""

    __tablename__ = "models"
    __table_args__ = _line_constraints()


class ModelVersionRow(VersionColumns, Base):
    """A version of a model, or a claim to store one."""

    __tablename__ = "model_versions"
    __table_args__ = _version_constraints(
        __tablename__, "model_id", "framework", "model_type", "file_format"
    )

    line_id: Mapped[UUID] = mapped_column("model_id", ForeignKey("models.id"))
    framework: Mapped[str] = mapped_column(String(64))
    model_type: Mapped[str] = mapped_column(String(64))
    file_format: Mapped[str] = mapped_column(String(16))


class ModelTagRow(Base):
    """One tag of a model's version, for filtering."""

    __tablename__ = "model_tags"
    __table_args__ = (Index(None, "tag", "version_id"),)

    version_id: Mapped[UUID] = mapped_column(
        ForeignKey("model_versions.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)


class DatasetRow(LineColumns, Base):
    """A named dataset."""

    __tablename__ = "datasets"
    __table_args__ = _line_constraints()


class DatasetVersionRow(VersionColumns, Base):
    """A version of a dataset, or a claim to store one."""

    __tablename__ = "dataset_versions"
    __table_args__ = _version_constraints(__tablename__, "dataset_id", "format")

    line_id: Mapped[UUID] = mapped_column("dataset_id", ForeignKey("datasets.id"))
    file_format: Mapped[str] = mapped_column("format", String(16))
    manifest_cid: Mapped[CID | None]
    """Set for archives, with the next three."""
    manifest_key: Mapped[str | None] = mapped_column(_KEY, index=True)
    index_cid: Mapped[CID | None]
    """Of the member index: where each file lies in the archive."""
    index_key: Mapped[str | None] = mapped_column(_KEY, index=True)


class DatasetTagRow(Base):
    """One tag of a dataset's version, for filtering."""

    __tablename__ = "dataset_tags"
    __table_args__ = (Index(None, "tag", "version_id"),)

    version_id: Mapped[UUID] = mapped_column(
        ForeignKey("dataset_versions.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)


class UserRow(Base):
    """Who may sign in, and what they may do: a person, a device, a program."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    roles: Mapped[list[str]]
    """Named sets of permissions (``registry/permissions.py``)."""
    permissions: Mapped[list[str]]
    """Permissions beside those of the roles."""
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    token_generation: Mapped[int] = mapped_column(default=0)
    """Raised to end all tokens that were issued before."""
    max_versions: Mapped[int | None] = mapped_column(BigInteger)
    """The user's own quota; 0: none. ``None``: that of the settings."""
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)


class UserSecretRow(Base):
    """One of the secrets that a user signs in with."""

    __tablename__ = "user_secrets"
    __table_args__ = (UniqueConstraint("user_id", "label"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Part of the secret, so that one hash is computed, not one for each secret."""
    user_id: Mapped[str] = mapped_column(
        _ID, ForeignKey("users.id", ondelete="CASCADE")
    )
    label: Mapped[str] = mapped_column(String(64))
    secret_hash: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    last_used_from: Mapped[str | None] = mapped_column(String(64))
    """The address that it was last used from."""


class RevokedTokenRow(Base):
    """A token that is not accepted any more, until it would have expired."""

    __tablename__ = "revoked_tokens"

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(_ID, index=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class SignInFailureRow(Base):
    """How often signing in failed of late, of an account or from an address."""

    __tablename__ = "sign_in_failures"

    subject: Mapped[str] = mapped_column(_ID, primary_key=True)
    """``user:NAME``, ``secret:ID`` or ``address:ADDRESS``."""
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(index=True)
    blocked_until: Mapped[datetime | None]


class AuditEventRow(Base):
    """Something that a principal did; never changed or removed.

    ``hash`` is of the event and of the hash before it in its chain (``db/audit.py``),
    so that whoever changes or removes one must change all that follow.
    """

    __tablename__ = "audit_events"
    __table_args__ = (UniqueConstraint("chain", "seq"),)

    id: Mapped[int] = mapped_column(_AUDIT_ID, primary_key=True)
    """In the order in which this database got them."""
    chain: Mapped[str] = mapped_column(_CHAIN)
    """The database that the event was first written to. One chain each."""
    seq: Mapped[int] = mapped_column(BigInteger)
    """From 1 up in each chain, without holes."""
    hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(index=True)
    principal: Mapped[str] = mapped_column(String(255), index=True)
    action: Mapped[str] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(Text, index=True)
    detail: Mapped[dict[str, Any]]
    address: Mapped[str | None] = mapped_column(String(64))
    """Where the request came from."""
    request_id: Mapped[str | None] = mapped_column(String(64))


class AuditHeadRow(Base):
    """The end of this database's own chain of audit events: one row."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    chain: Mapped[str] = mapped_column(_CHAIN)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))


class SuspectRow(Base):
    """An object that a store answered wrongly, until a scrub finds it right."""

    __tablename__ = "suspect_objects"

    object_key: Mapped[str] = mapped_column(_SORTED_KEY, primary_key=True)
    cid: Mapped[CID]
    """Of the artifact or listing that the object is, or belongs to."""
    reason: Mapped[str] = mapped_column(String(64))
    """The code of the error that was seen last."""
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    times: Mapped[int] = mapped_column(BigInteger)


LineRow: TypeAlias = ModelRow | DatasetRow
VersionRow: TypeAlias = ModelVersionRow | DatasetVersionRow


@dataclass(frozen=True, slots=True)
class Collection:
    """One of the two sets of tables."""

    name: str
    line: type[LineRow]
    version: type[VersionRow]
    tag: type[ModelTagRow | DatasetTagRow]


MODELS = Collection("models", ModelRow, ModelVersionRow, ModelTagRow)
DATASETS = Collection("datasets", DatasetRow, DatasetVersionRow, DatasetTagRow)
