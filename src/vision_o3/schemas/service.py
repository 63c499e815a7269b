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
