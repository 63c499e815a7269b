"""Say where a dataset's manifest and member index lie.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TABLE = "dataset_versions"


def upgrade() -> None:
    op.add_column(_TABLE, sa.Column("manifest_key", sa.Text()))
    op.add_column(_TABLE, sa.Column("index_cid", sa.String(59)))
    op.add_column(_TABLE, sa.Column("index_key", sa.Text()))
    for column in ("manifest_key", "index_key"):
        op.create_index(f"ix_{_TABLE}_{column}", _TABLE, [column])


def downgrade() -> None:
    for column in ("manifest_key", "index_key"):
        op.drop_index(f"ix_{_TABLE}_{column}", _TABLE)
    for column in ("manifest_key", "index_cid", "index_key"):
        op.drop_column(_TABLE, column)
