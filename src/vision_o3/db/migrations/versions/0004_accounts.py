"""Several secrets of a user, roles, quotas; revoked tokens; failed sign-ins.

Revision ID: 0004
Revises: 0003

Each user's secret becomes the first of their secrets. Going back keeps one secret of
each user: the oldest of those without an expiry, as the older software knows none and
would let in for ever who has one. Roles are not kept: who has nothing else may do
nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_USER_ID = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
_TIME = sa.DateTime(timezone=True)
_VERSIONS = ("model_versions", "dataset_versions")


def upgrade() -> None:
    op.create_table(
        "user_secrets",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("user_id", _USER_ID, nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("last_used_at", _TIME),
        sa.Column("last_used_from", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_user_secrets"),
        sa.UniqueConstraint("user_id", "label", name="uq_user_secrets_user_id_label"),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name="fk_user_secrets_user_id_users",
            ondelete="CASCADE",
        ),
    )
    op.execute(
        "INSERT INTO user_secrets (id, user_id, label, secret_hash, created_at) "
        "SELECT 'first-' || CAST(row_number() OVER (ORDER BY id) AS VARCHAR(20)), "
        "id, 'first', secret_hash, created_at FROM users"
    )
    with op.batch_alter_table("users") as users:
        users.drop_column("secret_hash")
        users.add_column(
            sa.Column("roles", sa.JSON(), nullable=False, server_default="[]")
        )
        users.add_column(
            sa.Column(
                "token_generation", sa.Integer(), nullable=False, server_default="0"
            )
        )
        users.add_column(sa.Column("max_versions", sa.BigInteger()))
        users.add_column(sa.Column("max_bytes", sa.BigInteger()))
    with op.batch_alter_table("users") as users:
        users.alter_column("roles", server_default=None)
        users.alter_column("token_generation", server_default=None)
    op.create_table(
        "revoked_tokens",
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("user_id", _USER_ID, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_revoked_tokens"),
    )
    for column in ("user_id", "expires_at"):
        op.create_index(f"ix_revoked_tokens_{column}", "revoked_tokens", [column])
    op.create_table(
        "sign_in_failures",
        sa.Column("subject", _USER_ID, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", _TIME, nullable=False),
        sa.Column("blocked_until", _TIME),
        sa.PrimaryKeyConstraint("subject", name="pk_sign_in_failures"),
    )
    op.create_index("ix_sign_in_failures_last_at", "sign_in_failures", ["last_at"])
    for versions in _VERSIONS:
        op.create_index(f"ix_{versions}_owner", versions, ["owner_id", "file_size"])


def downgrade() -> None:
    for versions in _VERSIONS:
        op.drop_index(f"ix_{versions}_owner", versions)
    op.drop_table("sign_in_failures")
    op.drop_table("revoked_tokens")
    with op.batch_alter_table("users") as users:
        users.add_column(
            sa.Column("secret_hash", sa.Text(), nullable=False, server_default="none")
        )
        users.drop_column("roles")
        users.drop_column("token_generation")
        users.drop_column("max_versions")
        users.drop_column("max_bytes")
    op.execute(
        "UPDATE users SET secret_hash = COALESCE((SELECT s.secret_hash FROM "
        "user_secrets s WHERE s.user_id = users.id AND s.expires_at IS NULL "
        "ORDER BY s.created_at, s.id "
        "LIMIT 1), 'none')"
    )
    with op.batch_alter_table("users") as users:
        users.alter_column("secret_hash", server_default=None)
    op.drop_table("user_secrets")
