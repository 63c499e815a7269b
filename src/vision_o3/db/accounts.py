"""Users, their secrets, tokens that were revoked, and failed attempts to sign in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, delete, func, literal_column, select, update

from vision_o3.db.models import (
    DatasetVersionRow,
    ModelVersionRow,
    RevokedTokenRow,
    SignInFailureRow,
    UserRow,
    UserSecretRow,
)
from vision_o3.db.statements import FRESH, insert, storable
from vision_o3.errors import AlreadyExistsError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

_IS_PURGED: ColumnElement[str] = literal_column(
    "'purged'"
)  # seen by the planner: an index has these
UNMARKED = "first-"
"""What the ids of secrets begin with that were made before secrets carried ids."""


def find_user(session: Session, user_id: str) -> UserRow | None:
    """Return a user, disabled or not."""
    if not storable(user_id):
        return None
    return session.scalars(
        select(UserRow).where(UserRow.id == user_id), execution_options=FRESH
    ).one_or_none()


def lock_user(session: Session, user_id: str) -> UserRow | None:
    """Return a user, locked until the transaction ends."""
    if not storable(user_id):
        return None
    return session.scalars(
        select(UserRow).where(UserRow.id == user_id).with_for_update(),
        execution_options=FRESH,
    ).one_or_none()


def insert_user(session: Session, user_id: str, **values: object) -> UserRow:
    """Add a user; ``values`` are the other columns.

    Raises:
        AlreadyExistsError: There is one of this name.
    """
    row = insert(session, UserRow, id=user_id, **values)
    if row is None:
        raise AlreadyExistsError(f"There is a user {user_id!r} already.")
    return row


def count_users(session: Session) -> int:
    """Return how many users there are."""
    return session.execute(select(func.count()).select_from(UserRow)).scalar_one()


def list_users(
    session: Session, *, offset: int = 0, limit: int | None = None
) -> list[UserRow]:
    """Return users by name, disabled ones too."""
    statement = select(UserRow).order_by(UserRow.id).offset(offset).limit(limit)
    return list(session.scalars(statement, execution_options=FRESH))


def find_secret(
    session: Session, user_id: str, secret_id: str | None
) -> tuple[UserRow, UserSecretRow] | None:
    """Return a secret of a user, and the user; by one query, whoever it is.

    ``None`` finds the secret that the user had before secrets carried ids.
    """
    if not (storable(user_id) and storable(secret_id or "")):
        return None
    is_wanted = (
        UserSecretRow.id.startswith(UNMARKED)
        if secret_id is None
        else UserSecretRow.id == secret_id
    )
    found = session.execute(
        select(UserRow, UserSecretRow)
        .join(UserSecretRow, UserSecretRow.user_id == UserRow.id)
        .where(UserRow.id == user_id, is_wanted)
        .limit(1),
        execution_options=FRESH,
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def list_secrets(session: Session, user_ids: Collection[str]) -> list[UserSecretRow]:
    """Return the secrets of users, the oldest first."""
    return list(
        session.scalars(
            select(UserSecretRow)
            .where(UserSecretRow.user_id.in_(user_ids))
            .order_by(UserSecretRow.created_at, UserSecretRow.id),
            execution_options=FRESH,
        )
    )


def insert_secret(session: Session, **values: object) -> UserSecretRow:
    """Add a secret; ``values`` are its columns.

    Raises:
        AlreadyExistsError: The user has one of this label.
    """
    row = insert(session, UserSecretRow, **values)
    if row is None:
        raise AlreadyExistsError(
            f"{values['user_id']!r} has a secret with the label {values['label']!r} "
            "already. Choose another label, or remove that one.",
        )
    return row


def delete_secret(session: Session, user_id: str, secret_id: str) -> str | None:
    """Remove a secret of a user; return its label, or ``None`` if there is none."""
    if not storable(secret_id):
        return None
    return session.scalars(
        delete(UserSecretRow)
        .where(UserSecretRow.user_id == user_id, UserSecretRow.id == secret_id)
        .returning(UserSecretRow.label)
    ).one_or_none()


def note_use(session: Session, secret_id: str, *, at: datetime, address: str) -> None:
    """Note when a secret was last used, and from where."""
    session.execute(
        update(UserSecretRow)
        .where(UserSecretRow.id == secret_id)
        .values(last_used_at=at, last_used_from=address)
    )


def revoke_token(
    session: Session, *, jti: str, user_id: str, expires_at: datetime
) -> bool:
    """Note that a token is not accepted any more; false if it was noted before."""
    row = insert(
        session, RevokedTokenRow, jti=jti, user_id=user_id, expires_at=expires_at
    )
    return row is not None


def revoked_tokens(session: Session, user_id: str) -> frozenset[str]:
    """Return the ids of the user's tokens that are not accepted any more."""
    return frozenset(
        session.scalars(
            select(RevokedTokenRow.jti).where(RevokedTokenRow.user_id == user_id)
        )
    )


def failures_of(
    session: Session, subjects: Collection[str], *, lock: bool = False
) -> dict[str, SignInFailureRow]:
    """Return what is noted of failed attempts to sign in.

    Args:
        session: As everywhere.
        subjects: Accounts and addresses.
        lock: Lock the rows until the transaction ends, in the order of the subjects.
    """
    statement = (
        select(SignInFailureRow)
        .where(SignInFailureRow.subject.in_(subjects))
        .order_by(SignInFailureRow.subject)
    )
    if lock:
        statement = statement.with_for_update()
    rows = session.scalars(statement, execution_options=FRESH)
    return {row.subject: row for row in rows}


def begin_failures(session: Session, subjects: Sequence[str], now: datetime) -> None:
    """Make sure that there is a row for each of the subjects."""
    for subject in sorted(subjects):
        insert(session, SignInFailureRow, subject=subject, failures=0, last_at=now)


def clear_failures(session: Session, subject: str) -> None:
    """Forget the failed attempts of an account or address."""
    session.execute(delete(SignInFailureRow).where(SignInFailureRow.subject == subject))


def remove_outdated(
    session: Session, *, now: datetime, failures_before: datetime
) -> int:
    """Remove revoked tokens that have expired, and failures before a moment."""
    tokens = session.scalars(
        delete(RevokedTokenRow)
        .where(RevokedTokenRow.expires_at < now)
        .returning(RevokedTokenRow.jti)
    )
    failures = session.scalars(
        delete(SignInFailureRow)
        .where(SignInFailureRow.last_at < failures_before)
        .returning(SignInFailureRow.subject)
    )
    return len(tokens.all()) + len(failures.all())


def usage_of(session: Session, user_id: str) -> tuple[int, int]:
    """Return how many versions a user has published or claimed, and their bytes.

    What was purged has none any more.
    """
    versions = size = 0
    for version in (ModelVersionRow, DatasetVersionRow):
        found = session.execute(
            select(func.count(), func.coalesce(func.sum(version.file_size), 0)).where(
                version.owner_id == user_id
            )
        ).one()
        purged = session.execute(
            select(func.coalesce(func.sum(version.file_size), 0)).where(
                version.owner_id == user_id, version.withdrawal == _IS_PURGED
            )
        ).scalar_one()
        versions += found[0]
        size += int(found[1]) - int(purged)
    return versions, size
