"""Token → principal: who asks, and what they may do at this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from vision_o3.errors import InputError, PermissionDeniedError
from vision_o3.gateway.tokens import invalid_token
from vision_o3.registry.permissions import (
    Principal,
    covers,
    narrowed,
    parse_permission,
)

if TYPE_CHECKING:
    from vision_o3.gateway.tokens import Claims, Tokens
    from vision_o3.registry.standing import Standing, Standings

_MAX_SCOPE = 16 << 10
"""Characters of a sign-in's ``scope``."""


class Door:
    """Lets in who has a token that holds.

    Args:
        tokens: Checks what tokens say.
        standings: Tells whether that still holds.
    """

    def __init__(self, tokens: Tokens, standings: Standings) -> None:
        self._tokens = tokens
        self._standings = standings

    async def admit(
        self, token: str, *, address: str | None, request_id: str | None
    ) -> Principal:
        """Return the principal that a token proves.

        Raises:
            UnauthenticatedError: It is not ours, expired, or does not hold any more.
            DatabaseUnavailableError: Whether it holds cannot be found out.
        """
        claims = self._tokens.check(token)
        standing = self._standings.kept(claims.user_id)
        if standing is None:
            standing = await run_in_threadpool(self._standings.look_up, claims.user_id)
        _check_standing(claims, standing)
        return Principal(
            claims.user_id,
            narrowed(standing.granted, claims.permissions),
            standing.granted,
            standing.max_versions,
            standing.max_bytes,
            address,
            request_id,
        )


def _check_standing(claims: Claims, standing: Standing) -> None:
    if not standing.enabled:
        raise invalid_token("The user is disabled, or not there any more", "disabled")
    if (
        claims.generation != standing.generation
        or claims.jti in standing.revoked
        or claims.secret_id not in standing.secret_ids
    ):
        raise invalid_token("The token was revoked", "revoked")


def narrow(user_id: str, granted: frozenset[str], scope: str | None) -> frozenset[str]:
    """Return the permissions asked for, in OAuth2's notation; without any, all.

    Raises:
        InputError: One is no permission, or they are too many.
        PermissionDeniedError: One that they do not have was asked for.
    """
    if len(scope or "") > _MAX_SCOPE:  # cut short, it could mean more than it says
        raise InputError(f"The scope is longer than {_MAX_SCOPE} characters.")
    asked = frozenset(map(parse_permission, (scope or "").split()))
    if not asked:
        return granted
    missing = sorted(each for each in asked if not covers(granted, each))
    if missing:
        raise PermissionDeniedError(
            f"{user_id!r} has no permission {missing[0]!r}. Ask for "
            f"{' '.join(sorted(granted)) or 'none'}, or leave 'scope' out.",
            scope=missing[0],
            error="invalid_scope",
        )
    return asked
