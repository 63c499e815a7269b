"""Credentials → token → principal → scopes.

Secrets of users are random and kept as argon2id hashes. Tokens are JWTs, signed by
the gateways' common key, so that any of them checks a token without the database.
"""

from __future__ import annotations

import functools
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from vision_o3.db import queries
from vision_o3.errors import (
    InputError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from vision_o3.db.engine import Database
    from vision_o3.settings import Settings

SCOPES = {
    "model:read": "List and fetch models.",
    "model:write": "Publish models.",
    "dataset:read": "List and fetch datasets.",
    "dataset:write": "Publish datasets.",
    "admin": "Manage users, maintain the gateway.",
}
ISSUER = AUDIENCE = "vision-o3"
LEEWAY_S = 5
"""By how much the clocks of two gateways may differ."""
MAX_SECRET = 1024
"""Characters of a secret that are looked at."""

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
# OWASP's first choice for argon2id: 19 MiB, so that signing in costs little memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what they may do."""

    id: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raise unless the principal has the scope.

        Raises:
            PermissionDeniedError: They have not.
        """
        if scope not in self.scopes:
            raise PermissionDeniedError(
                f"This needs the permission {scope!r}, which your token does not "
                "carry. Ask for a token with it, or the operator for the permission.",
                scope=scope,
                challenge=f'Bearer error="insufficient_scope", scope="{scope}"',
            )


class Tokens:
    """Issues and checks tokens; one algorithm, fixed by the settings' key.

    Args:
        clock: Tells the time at which tokens are issued.
    """

    def __init__(
        self, settings: Settings, clock: Callable[[], datetime] | None = None
    ) -> None:
        self._clock = clock or (lambda: datetime.now(UTC))
        self.ttl_s = settings.token_ttl_s
        self._signing = settings.signing_key()
        self._checking: str | Ed25519PublicKey
        if isinstance(self._signing, str):
            self._algorithm, self._checking = "HS256", self._signing
        else:
            self._algorithm = "EdDSA"
            self._checking = self._signing.public_key()

    def issue(self, principal: Principal) -> str:
        """Return a token that proves the principal, for ``ttl_s`` seconds."""
        now = self._clock()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": principal.id,
            "scope": " ".join(sorted(principal.scopes)),
            "iat": now,
            "exp": now + timedelta(seconds=self.ttl_s),
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode(claims, self._signing, algorithm=self._algorithm)

    def check(self, token: str) -> Principal:
        """Return the principal that a token proves.

        Raises:
            UnauthenticatedError: It proves none: forged, expired, or not for us.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._checking,
                algorithms=[self._algorithm],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=LEEWAY_S,
                options={"require": ["sub", "scope", "iat", "exp", "jti"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise _invalid_token("The token has expired") from error
        except jwt.InvalidTokenError as error:
            raise _invalid_token("The token is not valid here") from error
        if not isinstance(claims["scope"], str):
            raise _invalid_token("The token is not valid here")
        return Principal(claims["sub"], frozenset(claims["scope"].split()))


def authenticate(database: Database, user_id: str, secret: str) -> Principal:
    """Return the user as a principal with all their scopes. Blocks, by intent.

    Unknown users, disabled users and wrong secrets get the same answer after the same
    work.

    Raises:
        UnauthenticatedError: Not such a user with such a secret.
    """
    user = None
    if _USER.fullmatch(user_id):
        with database.read() as session:
            user = queries.find_user(session, user_id)
    known = user is not None and user.disabled_at is None
    matches = _matches(user.secret_hash if known and user else _nobodys_hash(), secret)
    if not (known and matches and user):
        raise UnauthenticatedError(
            "There is no such user with this secret. Check both, or ask the "
            "operator: vision-o3 user list.",
            error="invalid_client",
        )
    return Principal(user.id, frozenset(user.permissions))


def narrow(principal: Principal, scope: str | None) -> Principal:
    """Return the principal with only the scopes asked for, in OAuth2's notation.

    Raises:
        PermissionDeniedError: One that they do not have was asked for.
    """
    if scope is None or not scope.split():
        return principal
    asked = frozenset(scope.split())
    missing = sorted(asked - principal.scopes)
    if missing:
        raise PermissionDeniedError(
            f"{principal.id!r} has no permission {missing[0][:64]!r}. Ask for "
            f"{' '.join(sorted(principal.scopes)) or 'none'}, or leave 'scope' out.",
            scope=missing[0][:64],
            error="invalid_scope",
        )
    return Principal(principal.id, asked)


def add_user(database: Database, user_id: str, scopes: Iterable[str]) -> str:
    """Add a user; return their secret, which nothing keeps.

    Raises:
        InputError: Not a name for a user, or not a scope.
        AlreadyExistsError: There is a user of this name.
    """
    if not _USER.fullmatch(user_id):
        raise InputError(
            f"{user_id!r} cannot be a user's name. Use 1 to 128 letters, digits "
            "and '.', '_', '@', '-', starting with a letter or digit.",
        )
    permissions = sorted(set(scopes))
    unknown = [scope for scope in permissions if scope not in SCOPES]
    if unknown or not permissions:
        raise InputError(
            f"{'No scope' if not unknown else repr(unknown[0])} is not a permission. "
            f"There are: {', '.join(SCOPES)}.",
        )
    secret = secrets.token_urlsafe(32)
    secret_hash = _HASHER.hash(secret)
    with database.write() as session:
        now = queries.database_now(session)
        queries.insert_user(
            session,
            user_id=user_id,
            permissions=permissions,
            secret_hash=secret_hash,
            now=now,
        )
        queries.insert_audit_event(
            session,
            at=now,
            principal="operator",
            action="user.added",
            subject=f"users/{user_id}",
            detail={"permissions": permissions},
        )
    return secret


def disable_user(database: Database, user_id: str) -> None:
    """Let a user sign in no more; tokens they have last until they expire.

    Raises:
        NotFoundError: There is no such user.
    """
    with database.write() as session:
        now = queries.database_now(session)
        if not queries.set_user_disabled(session, user_id, now):
            raise NotFoundError(
                f"There is no user {user_id!r}. See: vision-o3 user list.",
                name=user_id,
            )
        queries.insert_audit_event(
            session,
            at=now,
            principal="operator",
            action="user.disabled",
            subject=f"users/{user_id}",
            detail={},
        )


def _matches(secret_hash: str, secret: str) -> bool:
    try:
        return _HASHER.verify(secret_hash, secret[:MAX_SECRET])
    except (VerificationError, InvalidHashError):
        return False


@functools.cache
def _nobodys_hash() -> str:
    """Return a hash that no secret matches, to spend the same time on."""
    return _HASHER.hash(secrets.token_urlsafe(32))


def _invalid_token(reason: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"{reason}. Get a new one at POST /auth/token.",
        challenge='Bearer error="invalid_token"',
    )
