"""What the gateway says of itself, and the tokens it gives."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Token(BaseModel):
    """An answer to a sign-in (OAuth2, RFC 6749 section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - OAuth2's word for the kind
    expires_in: int = Field(description="Seconds.")
    scope: str = Field(description="What the token may do, separated by spaces.")


class Whoami(BaseModel):
    """Whose token this is, and what it may do now."""

    user: str
    permissions: list[str] = Field(examples=[["model:read", "dataset:read:traffic"]])


class PublicKey(BaseModel):
    """A key that tokens can be checked with: a JWK of Ed25519 (RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str = Field(description="Tokens name it in their heads.")
    alg: Literal["EdDSA"]
    use: Literal["sig"]


class KeySet(BaseModel):
    """All such keys (RFC 7517)."""

    keys: list[PublicKey]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str


class Readiness(BaseModel):
    """Whether requests can be served, and if not, what is missing."""

    status: Literal["ready", "not ready"]
    checks: dict[str, str] = Field(
        description="`ok`, or what is wrong, for `database`, `migrations`, `store`."
    )
