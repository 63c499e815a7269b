"""Users, and the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from vision_o3.db.models import AuditEventRow, UserRow
from vision_o3.db.statements import FRESH, insert, storable
from vision_o3.errors import AlreadyExistsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session


def find_user(session: Session, user_id: str) -> UserRow | None:
    """Return a user, disabled or not."""
    if not storable(user_id):
        return None
    return session.scalars(
        select(UserRow).where(UserRow.id == user_id), execution_options=FRESH
    ).one_or_none()


def insert_user(
    session: Session,
    user_id: str,
    permissions: Sequence[str],
    secret_hash: str,
    now: datetime,
) -> UserRow:
    """Add a user.

    Raises:
        AlreadyExistsError: There is one of this name.
    """
    row = insert(
        session,
        UserRow,
        id=user_id,
        permissions=list(permissions),
        secret_hash=secret_hash,
        created_at=now,
    )
    if row is None:
        raise AlreadyExistsError(f"There is a user {user_id!r} already.")
    return row


def list_users(session: Session) -> list[UserRow]:
    """Return all users, by name."""
    return list(
        session.scalars(select(UserRow).order_by(UserRow.id), execution_options=FRESH)
    )


def set_user_disabled(
    session: Session, user_id: str, disabled_at: datetime | None
) -> bool:
    """Disable a user, or with ``None`` enable again; false if there is none."""
    updated = session.execute(
        update(UserRow)
        .where(UserRow.id == user_id)
        .values(disabled_at=disabled_at)
        .returning(UserRow.id)
    )
    return updated.one_or_none() is not None


def insert_audit_event(
    session: Session,
    *,
    at: datetime,
    principal: str,
    action: str,
    subject: str,
    detail: dict[str, Any],
) -> None:
    """Note what a principal did; written when the transaction is committed."""
    session.add(
        AuditEventRow(
            at=at, principal=principal, action=action, subject=subject, detail=detail
        )
    )
