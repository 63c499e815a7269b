"""Chain the audit events by their hashes.

Revision ID: 0005
Revises: 0004

Events that are there are chained as they are now, in the order of their ids. From then
on the database itself refuses to change or remove one. A later revision that rebuilds
the table on SQLite must make the triggers again.
"""

import sqlalchemy as sa
from alembic import op

from vision_o3.db.audit import FIRST, Event, new_chain
from vision_o3.db.types import UTCDateTime

revision = "0005"
down_revision = "0004"

_TABLE = "audit_events"
_BATCH = 1000
_CHAIN = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_REFUSAL = "audit events are never changed or removed"
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_EVENTS = sa.table(
    _TABLE,
    sa.column("id", _ID),
    sa.column("at", UTCDateTime()),
    sa.column("principal", sa.String),
    sa.column("action", sa.String),
    sa.column("subject", sa.Text),
    sa.column("detail", sa.JSON),
    sa.column("chain", sa.String),
    sa.column("seq", sa.BigInteger),
    sa.column("hash", sa.String),
)


def upgrade() -> None:
    for column in (
        sa.Column("chain", _CHAIN),
        sa.Column("seq", sa.BigInteger()),
        sa.Column("hash", sa.String(64)),
        sa.Column("address", sa.String(64)),
        sa.Column("request_id", sa.String(64)),
    ):
        op.add_column(_TABLE, column)
    chain = new_chain()
    seq, last = _chain_events(chain)
    with op.batch_alter_table(_TABLE) as events:
        for name, kind in (
            ("chain", _CHAIN),
            ("seq", sa.BigInteger()),
            ("hash", sa.String(64)),
        ):
            events.alter_column(name, existing_type=kind, nullable=False)
        events.create_unique_constraint("uq_audit_events_chain_seq", ["chain", "seq"])
    op.create_index("ix_audit_events_action", _TABLE, ["action"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("chain", _CHAIN, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "chain": chain, "seq": seq, "hash": last}])
    _add_triggers()


def _add_triggers() -> None:
    if op.get_context().dialect.name == "sqlite":
        for change in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER audit_events_no_{change} BEFORE {change.upper()} "
                f"ON {_TABLE} BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION vision_o3_refuse_change() RETURNS trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN RAISE EXCEPTION '{_REFUSAL}' "
        "USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE "
        f"ON {_TABLE} FOR EACH STATEMENT EXECUTE FUNCTION vision_o3_refuse_change()"
    )


def _drop_triggers() -> None:
    if op.get_context().dialect.name == "sqlite":
        for change in ("update", "delete"):
            op.execute(f"DROP TRIGGER IF EXISTS audit_events_no_{change}")
        return
    op.execute(f"DROP TRIGGER IF EXISTS audit_events_no_change ON {_TABLE}")
    op.execute("DROP FUNCTION IF EXISTS vision_o3_refuse_change()")


def _chain_events(chain: str) -> tuple[int, str]:
    """Give each event its place and hash; return the last ones."""
    connection = op.get_bind()
    seq, last, after = 0, FIRST, 0
    while rows := connection.execute(
        sa.select(_EVENTS)
        .where(_EVENTS.c.id > after)
        .order_by(_EVENTS.c.id)
        .limit(_BATCH)
    ).all():
        for row in rows:
            seq, after = seq + 1, row.id
            last = Event(
                chain=chain,
                seq=seq,
                hash="",
                at=row.at,
                principal=row.principal,
                action=row.action,
                subject=row.subject,
                detail=row.detail,
                address=None,
                request_id=None,
            ).hash_after(last)
            connection.execute(
                sa.update(_EVENTS)
                .where(_EVENTS.c.id == row.id)
                .values(chain=chain, seq=seq, hash=last)
            )
    return seq, last


def downgrade() -> None:
    _drop_triggers()
    op.drop_table("audit_head")
    op.drop_index("ix_audit_events_action", _TABLE)
    with op.batch_alter_table(_TABLE) as events:
        events.drop_constraint("uq_audit_events_chain_seq", type_="unique")
        for name in ("chain", "seq", "hash", "address", "request_id"):
            events.drop_column(name)
