"""Tokens: JWTs that any gateway with the keys checks by itself.

Each key has an id (``kid``) and one algorithm; a token is checked with the key that it
names and by that key's algorithm alone, whatever else its head says. One key signs;
others may be accepted beside it, so that keys can be changed without a gap.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vision_o3.errors import InputError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vision_o3.registry.signing_in import SignedIn
    from vision_o3.settings import Settings

MAX_TOKEN = 32 << 10
"""Characters."""
_CHECKED = 10_000
"""Tokens whose signatures were checked and need not be again."""
_LONGEST_CHECKED = 2 << 10
"""Characters of such a token: of the longest ones, so many would take a gigabyte."""
_INVALID = "The token is not valid here"
_LATEST = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its id and its only algorithm."""

    kid: str
    algorithm: str
    checking: str | Ed25519PublicKey = field(repr=False)
    signing: str | Ed25519PrivateKey | None = field(default=None, repr=False)

    @classmethod
    def of(cls, key: str | Ed25519PrivateKey | Ed25519PublicKey) -> Key:
        """Return a key of the settings, with the id that follows from it."""
        if isinstance(key, str):
            return cls(_id_of_secret(key), "HS256", key, key)
        if isinstance(key, Ed25519PrivateKey):
            public = key.public_key()
            return cls(_thumbprint(public), "EdDSA", public, key)
        return cls(_thumbprint(key), "EdDSA", key)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says that was signed by one of our keys. It may have expired."""

    user_id: str
    permissions: frozenset[str]
    jti: str
    secret_id: str
    generation: int
    not_before: int
    expires: int
    """Seconds since 1970, as the one before."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token."""

    text: str = field(repr=False)
    expires_in: int
    """Seconds."""


class Tokens:
    """Issues tokens and checks them. Safe in any thread.

    Args:
        clock: Tells the time at which tokens are issued.
    """

    def __init__(
        self, settings: Settings, clock: Callable[[], datetime] | None = None
    ) -> None:
        self._clock = clock or (lambda: datetime.now(UTC))
        self.ttl_s = settings.token_ttl_s
        self._leeway_s = settings.token_leeway_s
        self._issuer = settings.token_issuer
        self._audience = settings.token_audience
        self._key = Key.of(settings.signing_key())
        others = (Key.of(key) for key in settings.verifying_keys())
        self._keys = {key.kid: key for key in (*others, self._key)}
        self._checked: OrderedDict[str, Claims] = OrderedDict()

    def issue(
        self,
        user: SignedIn,
        permissions: frozenset[str],
        ttl_s: int | None = None,
    ) -> Issued:
        """Return a token of a user for some of their permissions.

        It lasts for ``ttl_s`` seconds, but not longer than the settings say, nor than
        the secret that it is given for.

        Raises:
            InputError: So many permissions that it would be refused for its length.
        """
        now = self._clock()
        lasts_s = min(ttl_s or self.ttl_s, self.ttl_s)
        if user.secret_expires_at is not None:
            left_s = (user.secret_expires_at - now) // timedelta(seconds=1)
            lasts_s = max(0, min(lasts_s, left_s))
        issued_at = int(now.timestamp())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user.user_id,
            "scope": " ".join(sorted(permissions)),
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + lasts_s,
            "jti": secrets.token_urlsafe(12),
            "sid": user.secret_id,
            "gen": user.generation,
        }
        text = jwt.encode(
            claims,
            self._key.signing or "",
            algorithm=self._key.algorithm,
            headers={"kid": self._key.kid},
        )
        if len(text) > MAX_TOKEN:
            raise InputError(
                f"A token for {len(permissions)} permissions would be too long. Ask "
                "for those that are needed: send 'scope'.",
            )
        return Issued(text, lasts_s)

    def check(self, token: str) -> Claims:
        """Return what a token says, if it is ours and it is its time.

        Raises:
            UnauthenticatedError: It is forged, expired, not valid yet, or not for us.
        """
        claims = self._checked.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(token) <= _LONGEST_CHECKED:
                self._checked[token] = claims
            while len(self._checked) > _CHECKED:
                self._checked.popitem(last=False)
        now = time.time()
        if now >= claims.expires + self._leeway_s:
            self._checked.pop(token, None)
            raise invalid_token("The token has expired", "expired")
        if now < claims.not_before - self._leeway_s:
            raise invalid_token("The token is not valid yet", "not_yet_valid")
        return claims

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public keys that tokens can be checked with (RFC 7517)."""
        return {
            "keys": [
                {
                    **_public_members(key.checking),
                    "kid": key.kid,
                    "alg": key.algorithm,
                    "use": "sig",
                }
                for key in self._keys.values()
                if not isinstance(key.checking, str)
            ]
        }

    def _decode(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN:
            raise invalid_token(_INVALID)
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise invalid_token(_INVALID)
            claims: dict[str, Any] = jwt.decode(
                token,
                key.checking,
                algorithms=[key.algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["sub", "scope", "iat", "nbf", "exp", "jti"],
                    # Looked at whenever the token is used, not only now.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            return _to_claims(claims)
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise invalid_token(_INVALID) from error


def invalid_token(reason: str, refused: str = "invalid") -> UnauthenticatedError:
    """Return the error that a token is not accepted, and what to do.

    Args:
        reason: A sentence, without its full stop.
        refused: The same in a word that is counted (``metrics.REFUSALS``).
    """
    return UnauthenticatedError(
        f"{reason}. Get a new one at POST /auth/token.",
        challenge='Bearer error="invalid_token"',
        refused=refused,
    )


def _to_claims(claims: dict[str, Any]) -> Claims:
    texts = {name: claims.get(name, "") for name in ("sub", "scope", "jti", "sid")}
    numbers = {name: claims.get(name, 0) for name in ("iat", "nbf", "exp", "gen")}
    if not all(isinstance(text, str) for text in texts.values()) or not all(
        type(number) is int and 0 <= number <= _LATEST for number in numbers.values()
    ):
        raise ValueError("a claim is of another type")
    return Claims(
        texts["sub"],
        frozenset(texts["scope"].split()),
        texts["jti"],
        texts["sid"],
        numbers["gen"],
        max(numbers["iat"], numbers["nbf"]),
        numbers["exp"],
    )


def _public_members(key: Ed25519PublicKey) -> dict[str, str]:
    """Return the members that make a JWK of an Ed25519 key (RFC 8037)."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}


def _thumbprint(key: Ed25519PublicKey) -> str:
    """Return the JWK thumbprint of a key (RFC 7638)."""
    members = json.dumps(_public_members(key), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(members.encode()).digest())


def _id_of_secret(secret: str) -> str:
    """Return an id that tells a secret from others, and nothing else of it."""
    return _base64url(hmac.digest(secret.encode(), b"vision-o3 kid", "sha256")[:12])


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
