"""Versions that were deprecated, blocked or purged.

Revision ID: 0006
Revises: 0005

Going back forgets in the rows what was withdrawn: blocked versions are served again.
The decisions stay in the store; after coming forward again, 'vision-o3 admin
rebuild-index' applies them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# name: (type, what rows get that are there)
_COLUMNS: dict[str, tuple[Any, Any]] = {
    "withdrawal": (sa.String(16), None),
    "withdrawal_number": (sa.Integer(), "0"),
    "withdrawn_at": (sa.DateTime(timezone=True), None),
    "withdrawn_by": (sa.String(255), None),
    "withdrawn_by_admin": (sa.Boolean(), sa.false()),
    "withdrawn_reason": (sa.Text(), None),
}
_VERSIONS = ("model_versions", "dataset_versions")


def upgrade() -> None:
    for versions in _VERSIONS:
        for name, (kind, first) in _COLUMNS.items():
            column = sa.Column(name, kind, nullable=first is None, server_default=first)
            op.add_column(versions, column)
        op.create_index(
            f"ix_{versions}_purged",
            versions,
            ["cid"],
            sqlite_where=sa.text("withdrawal = 'purged'"),
            postgresql_where=sa.text("withdrawal = 'purged'"),
        )


def downgrade() -> None:
    for versions in _VERSIONS:
        op.drop_index(f"ix_{versions}_purged", versions)
        for name in _COLUMNS:
            op.drop_column(versions, name)
