"""Users and their secrets: made, changed, checked, told apart.

A user is a person, a device or a program. Each has any number of secrets, so that one
can be replaced without a gap. A secret is random; only its argon2id hash is kept. It
carries its own id, so that one hash is computed for an attempt, however many secrets
there are: the time that an attempt takes says nothing about who exists.
"""

from __future__ import annotations

import functools
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from vision_o3.db import accounts as rows
from vision_o3.db import queries
from vision_o3.db.changes import notify_change
from vision_o3.errors import InputError, NotFoundError
from vision_o3.registry.audit import record_event
from vision_o3.registry.permissions import (
    parse_permission,
    parse_role,
    permissions_of,
)
from vision_o3.registry.values import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.orm import Session

    from vision_o3.db.engine import Database
    from vision_o3.db.models import UserRow, UserSecretRow
    from vision_o3.registry.audit import Actor

CHANGES = "users"
"""What changes to users are told as, where those to lines are told by collection."""
FIRST_LABEL = "first"
MAX_SECRET = 1024
"""Characters of a secret that are looked at."""
MAX_PERMISSIONS = 200
"""Of one user."""
_MAX_SECRETS = 20
"""Of one user at a time."""
_LONGEST_LABEL = 64
_MAX_QUOTA = 1 << 62

RESERVED = ("operator", "anonymous", "metrics")
"""Whom logs and the audit trail name so is no user, and no user may pass for them."""
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_SECRET = re.compile(r"vo3_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
"""``vo3`` so that scanners of published code can tell what they have found."""
# OWASP's first choice for argon2id: 19 MiB, so that signing in costs little memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as it is shown: all but the secret itself."""

    id: str
    label: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_from: str | None


@dataclass(frozen=True, slots=True)
class User:
    """A user as they are shown."""

    id: str
    roles: tuple[str, ...]
    permissions: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None
    max_versions: int | None
    max_bytes: int | None
    secrets: tuple[Secret, ...]

    @property
    def granted(self) -> frozenset[str]:
        """All permissions, those of the roles too."""
        return permissions_of(self.roles, self.permissions)


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret, this once."""

    id: str
    label: str
    expires_at: datetime | None
    secret: str

    def __repr__(self) -> str:
        """Show all but the secret."""
        return f"NewSecret({self.id!r}, {self.label!r})"


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to change about a user. What is ``None`` stays."""

    roles: tuple[str, ...] | None = None
    permissions: tuple[str, ...] | None = None
    disabled: bool | None = None
    quotas: Mapping[str, int | None] | None = None
    """``max_versions``, ``max_bytes``; ``None`` for what the settings say."""


class Accounts:
    """Manages the users of one database. Safe in any thread; all methods block.

    Every change is in the audit trail, and told to all gateways.

    Args:
        on_change: Called with a user's name when they were changed here.
    """

    def __init__(
        self, database: Database, on_change: Callable[[str], None] | None = None
    ) -> None:
        self._database = database
        self._on_change = on_change or (lambda _: None)

    def add(
        self,
        actor: Actor,
        user_id: str,
        *,
        roles: Iterable[str] = (),
        permissions: Iterable[str] = (),
        quotas: Mapping[str, int | None] | None = None,
        label: str = FIRST_LABEL,
        lifetime: timedelta | None = None,
    ) -> tuple[User, NewSecret]:
        """Add a user with a secret, which is told this once and not kept.

        Raises:
            InputError: Not a name for a user, not a role, not a permission, or none.
            AlreadyExistsError: There is a user of this name.
        """
        if not USER.fullmatch(user_id):
            raise InputError(
                f"{user_id[:200]!r} cannot be a user's name. Use 1 to 128 letters, "
                "digits and '.', '_', '@', '-', starting with a letter or digit.",
            )
        if user_id.lower() in RESERVED:
            raise InputError(
                f"{user_id!r} is what the audit trail calls somebody else. Choose "
                "another name.",
            )
        given = _parse_grants(roles, permissions)
        if not any(given):
            raise InputError("Say what the user may do: give a role or a permission.")
        own = _parse_quotas(quotas or {})
        label = _parse_label(label)
        secret_id, secret = _make_secret()
        hashed = _HASHER.hash(secret)
        with self._database.write() as session:
            now = queries.database_now(session)
            row = rows.insert_user(
                session,
                user_id,
                roles=list(given[0]),
                permissions=list(given[1]),
                created_at=now,
                **own,
            )
            kept = rows.insert_secret(
                session,
                id=secret_id,
                user_id=user_id,
                label=label,
                secret_hash=hashed,
                created_at=now,
                expires_at=_expiry(now, lifetime),
            )
            user = _to_user(row, [kept])
            detail = {"roles": list(given[0]), "permissions": list(given[1]), **own}
            self._record(session, actor, "user.added", user_id, detail, now)
        return user, NewSecret(secret_id, label, kept.expires_at, secret)

    def change(self, actor: Actor, user_id: str, changes: Changes) -> User:
        """Change what a user may do, and whether they may at all; all or nothing.

        Raises:
            NotFoundError: There is no such user.
            InputError: Not a role, a permission, or a quota.
        """
        roles, permissions = _parse_grants(
            changes.roles or (), changes.permissions or ()
        )
        values: dict[str, object] = dict(_parse_quotas(changes.quotas or {}))
        if changes.roles is not None:
            values["roles"] = list(roles)
        if changes.permissions is not None:
            values["permissions"] = list(permissions)
        with self._database.write() as session:
            now = queries.database_now(session)
            row = self._lock(session, user_id)
            changed = {
                name: value
                for name, value in values.items()
                if getattr(row, name) != value
            }
            for name, value in changed.items():
                setattr(row, name, value)
            switched = changes.disabled is not None and (
                changes.disabled is (row.disabled_at is None)
            )
            if switched:
                row.disabled_at = now if changes.disabled else None
            session.flush()
            if changed:
                self._record(session, actor, "user.changed", user_id, changed, now)
            if switched:
                action = "user.disabled" if changes.disabled else "user.enabled"
                self._record(session, actor, action, user_id, {}, now)
            user = _to_user(row, rows.list_secrets(session, [user_id]))
        self._on_change(user_id)
        return user

    def add_secret(
        self,
        actor: Actor,
        user_id: str,
        *,
        label: str,
        lifetime: timedelta | None = None,
    ) -> NewSecret:
        """Add a secret to those that a user has; it is told this once and not kept.

        Raises:
            NotFoundError: There is no such user.
            AlreadyExistsError: The user has one of this label.
            InputError: Not a label, or the user has too many secrets.
        """
        label = _parse_label(label)
        secret_id, secret = _make_secret()
        hashed = _HASHER.hash(secret)
        with self._database.write() as session:
            now = queries.database_now(session)
            self._lock(session, user_id)
            if len(rows.list_secrets(session, [user_id])) >= _MAX_SECRETS:
                raise InputError(
                    f"{user_id!r} has {_MAX_SECRETS} secrets. Remove one first.",
                )
            kept = rows.insert_secret(
                session,
                id=secret_id,
                user_id=user_id,
                label=label,
                secret_hash=hashed,
                created_at=now,
                expires_at=_expiry(now, lifetime),
            )
            detail = {
                "secret": secret_id,
                "label": label,
                "expires_at": kept.expires_at.isoformat() if kept.expires_at else None,
            }
            self._record(session, actor, "secret.added", user_id, detail, now)
        self._on_change(user_id)
        return NewSecret(secret_id, label, kept.expires_at, secret)

    def remove_secret(self, actor: Actor, user_id: str, secret_id: str) -> None:
        """Remove a secret; tokens that were issued for it end.

        Raises:
            NotFoundError: There is no such user or secret.
        """
        with self._database.write() as session:
            now = queries.database_now(session)
            self._lock(session, user_id)
            label = rows.delete_secret(session, user_id, secret_id)
            if label is None:
                raise NotFoundError(
                    f"{user_id!r} has no secret {secret_id[:64]!r}. "
                    f"See: vision-o3 user show {user_id}.",
                )
            detail = {"secret": secret_id, "label": label}
            self._record(session, actor, "secret.removed", user_id, detail, now)
        self._on_change(user_id)

    def end_tokens(self, actor: Actor, user_id: str) -> None:
        """End all tokens that the user has now.

        Raises:
            NotFoundError: There is no such user.
        """
        with self._database.write() as session:
            now = queries.database_now(session)
            self._lock(session, user_id).token_generation += 1
            session.flush()
            self._record(session, actor, "tokens.ended", user_id, {}, now)
        self._on_change(user_id)

    def revoke_token(
        self, actor: Actor, user_id: str, jti: str, expires_at: datetime
    ) -> None:
        """End one token."""
        with self._database.write() as session:
            now = queries.database_now(session)
            if rows.revoke_token(
                session, jti=jti, user_id=user_id, expires_at=expires_at
            ):
                detail = {"jti": jti}
                self._record(session, actor, "token.revoked", user_id, detail, now)
        self._on_change(user_id)

    def get(self, user_id: str) -> User:
        """Return a user.

        Raises:
            NotFoundError: There is no such user.
        """
        with self._database.read() as session:
            row = rows.find_user(session, user_id)
            if row is None:
                raise _no_user(user_id)
            return _to_user(row, rows.list_secrets(session, [user_id]))

    def list(self, *, page: int = 1, page_size: int = 200) -> Page[User]:
        """Return users by name."""
        with self._database.read() as session:
            found = rows.list_users(
                session, offset=(page - 1) * page_size, limit=page_size
            )
            of_users: dict[str, list[UserSecretRow]] = {row.id: [] for row in found}
            for secret in rows.list_secrets(session, list(of_users)):
                of_users[secret.user_id].append(secret)
            total = rows.count_users(session)
        items = tuple(_to_user(row, of_users[row.id]) for row in found)
        return Page(items, page, page_size, total)

    def _lock(self, session: Session, user_id: str) -> UserRow:
        row = rows.lock_user(session, user_id)
        if row is None:
            raise _no_user(user_id)
        return row

    def _record(
        self,
        session: Session,
        actor: Actor,
        action: str,
        user_id: str,
        detail: Mapping[str, object],
        now: datetime,
    ) -> None:
        notify_change(session, CHANGES, user_id)
        record_event(session, actor, action, f"users/{user_id}", dict(detail), now=now)


def hash_matches(secret_hash: str | None, secret: str) -> bool:
    """Say whether a secret has this hash; without one, no, after the same work."""
    wanted = _nobodys_hash() if secret_hash is None else secret_hash
    try:
        _HASHER.verify(wanted, secret[:MAX_SECRET])
    except (VerificationError, InvalidHashError):
        return False
    return secret_hash is not None


def secret_id_of(secret: str) -> str | None:
    """Return the id that a secret carries; those of before version 0.2 carry none."""
    match = _SECRET.fullmatch(secret)
    return None if match is None else match[1]


def _make_secret() -> tuple[str, str]:
    secret_id = secrets.token_hex(8)
    return secret_id, f"vo3_{secret_id}_{secrets.token_urlsafe(32)}"


@functools.cache
def _nobodys_hash() -> str:
    """Return a hash that no secret matches, to spend the same time on."""
    return _HASHER.hash(secrets.token_urlsafe(32))


def _parse_grants(
    roles: Iterable[str], permissions: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = sorted({parse_role(role) for role in roles})
    given = sorted({parse_permission(each) for each in permissions})
    if len(given) > MAX_PERMISSIONS:
        raise InputError(
            f"{len(given)} permissions were given; a user may have {MAX_PERMISSIONS}."
        )
    return tuple(named), tuple(given)


def _parse_quotas(quotas: Mapping[str, int | None]) -> dict[str, int | None]:
    for name, value in quotas.items():
        if value is not None and not 0 <= value <= _MAX_QUOTA:
            raise InputError(f"{name} must be 0 (no limit) or more, not {value}.")
    return dict(quotas)


def _parse_label(label: str) -> str:
    label = label.strip()
    if not 1 <= len(label) <= _LONGEST_LABEL or not label.isprintable():
        raise InputError(
            f"{label[:_LONGEST_LABEL]!r} cannot be a secret's label. Use 1 to "
            f"{_LONGEST_LABEL} printable characters, such as the place it is kept at.",
        )
    return label


def _expiry(now: datetime, lifetime: timedelta | None) -> datetime | None:
    if lifetime is None:
        return None
    if lifetime <= timedelta(0):
        raise InputError("A secret must last for some time: give it more than 0.")
    try:
        return now + lifetime
    except OverflowError:
        raise InputError(
            "A secret cannot last that long. Leave its lifetime out: it lasts until "
            "it is removed.",
        ) from None


def _no_user(user_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no user {user_id[:128]!r}. See: vision-o3 user list."
    )


def _to_user(row: UserRow, kept: Iterable[UserSecretRow]) -> User:
    return User(
        row.id,
        tuple(row.roles),
        tuple(row.permissions),
        row.created_at,
        row.disabled_at,
        row.max_versions,
        row.max_bytes,
        tuple(
            Secret(
                secret.id,
                secret.label,
                secret.created_at,
                secret.expires_at,
                secret.last_used_at,
                secret.last_used_from,
            )
            for secret in kept
        ),
    )
