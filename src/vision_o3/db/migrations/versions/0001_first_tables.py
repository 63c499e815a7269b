"""Create every table.

Revision ID: 0001
Revises: none
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_USER_ID = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
_TIME = sa.DateTime(timezone=True)
_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_STORING: dict[str, Any] = {
    "sqlite_where": sa.text("state = 'storing'"),
    "postgresql_where": sa.text("state = 'storing'"),
}
_CURRENT: dict[str, Any] = {
    "sqlite_where": sa.text("is_current = 1"),
    "postgresql_where": sa.text("is_current"),
}

# (collection, version table, tag table, line column, columns of its own)
_COLLECTIONS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (
        "models",
        "model_versions",
        "model_tags",
        "model_id",
        {
            "framework": sa.String(64),
            "model_type": sa.String(64),
            "file_format": sa.String(16),
        },
    ),
    (
        "datasets",
        "dataset_versions",
        "dataset_tags",
        "dataset_id",
        {"format": sa.String(16)},
    ),
]


def upgrade() -> None:
    for lines, versions, tags, line_id, labels in _COLLECTIONS:
        _create_lines(lines)
        _create_versions(lines, versions, line_id, labels)
        op.create_table(
            tags,
            sa.Column("version_id", sa.Uuid(), nullable=False),
            sa.Column("tag", sa.String(64), nullable=False),
            sa.PrimaryKeyConstraint("version_id", "tag", name=f"pk_{tags}"),
            sa.ForeignKeyConstraint(
                ["version_id"],
                [f"{versions}.id"],
                name=f"fk_{tags}_version_id_{versions}",
                ondelete="CASCADE",
            ),
        )
        op.create_index(f"ix_{tags}_tag_version_id", tags, ["tag", "version_id"])
    op.create_table(
        "users",
        sa.Column("id", _USER_ID, nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("disabled_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", _COUNTER, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
    )
    for column in ("at", "principal", "subject"):
        op.create_index(f"ix_audit_events_{column}", "audit_events", [column])


def downgrade() -> None:
    op.drop_table("audit_events")
    op.drop_table("users")
    for lines, versions, tags, _, _ in _COLLECTIONS:
        op.drop_table(tags)
        op.drop_table(versions)
        op.drop_table(lines)


def _create_lines(table: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("current_version", sa.Integer(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("owner_id", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint("name", name=f"uq_{table}_name"),
        sa.CheckConstraint(
            "current_version >= 0", name=op.f(f"ck_{table}_current_version")
        ),
    )
    op.create_index(f"ix_{table}_owner_id", table, ["owner_id"])


def _create_versions(
    lines: str, table: str, line_id: str, labels: dict[str, Any]
) -> None:
    manifest = [sa.Column("manifest_cid", sa.String(59))] if lines == "datasets" else []
    op.create_table(
        table,
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(line_id, sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("cid", sa.String(59), nullable=False),
        *(sa.Column(name, kind, nullable=False) for name, kind in labels.items()),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("description_folded", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("owner_id", sa.String(255), nullable=False),
        *manifest,
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("sidecar_key", sa.Text()),
        sa.Column("record_key", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("published_at", _TIME),
        sa.Column("lease_token", sa.String(64)),
        sa.Column("lease_expires_at", _TIME),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(
            [line_id], [f"{lines}.id"], name=f"fk_{table}_{line_id}_{lines}"
        ),
        sa.UniqueConstraint(line_id, "version", name=f"uq_{table}_{line_id}_version"),
        sa.CheckConstraint("version >= 1", name=op.f(f"ck_{table}_version")),
        sa.CheckConstraint("file_size >= 0", name=op.f(f"ck_{table}_file_size")),
        sa.CheckConstraint(
            "(state = 'storing' AND lease_token IS NOT NULL"
            " AND lease_expires_at IS NOT NULL AND published_at IS NULL)"
            " OR (state = 'published' AND lease_token IS NULL"
            " AND lease_expires_at IS NULL AND published_at IS NOT NULL)",
            name=op.f(f"ck_{table}_state"),
        ),
        sa.CheckConstraint(
            "state = 'published' OR NOT is_current",
            name=op.f(f"ck_{table}_is_current"),
        ),
    )
    for column in ("cid", "object_key", "sidecar_key", "record_key"):
        op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_index(f"uq_{table}_storing", table, [line_id], unique=True, **_STORING)
    op.create_index(f"uq_{table}_current", table, [line_id], unique=True, **_CURRENT)
    for column in ("created_at", "file_size", *labels):
        op.create_index(
            f"ix_{table}_current_{column}", table, [column, "id"], **_CURRENT
        )
