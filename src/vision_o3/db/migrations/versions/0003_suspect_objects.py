"""Keep which objects a store answered wrongly.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "suspect_objects",
        sa.Column("object_key", _KEY, nullable=False),
        sa.Column("cid", sa.String(59), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("first_seen_at", _TIME, nullable=False),
        sa.Column("last_seen_at", _TIME, nullable=False),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("object_key", name="pk_suspect_objects"),
    )


def downgrade() -> None:
    op.drop_table("suspect_objects")
