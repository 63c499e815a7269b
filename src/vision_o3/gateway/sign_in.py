"""The routes that give tokens for credentials (OAuth2, RFC 6749), and end them."""

from __future__ import annotations

import asyncio
import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from vision_o3 import errors
from vision_o3.gateway.auth import narrow
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.deps import AnyPrincipal, GatewayDep, Public, address_of
from vision_o3.gateway.middleware import request_id_of
from vision_o3.gateway.problems import describe
from vision_o3.registry.audit import Actor
from vision_o3.schemas.service import KeySet, Token, Whoami

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_FORM = 64 << 10
"""Bytes."""
_MAX_FIELDS = 16
_FORM_S = 15
"""Seconds that a form may take: anybody may send one."""
_FORM_TYPE = "application/x-www-form-urlencoded"
_GRANTS = {
    "client_credentials": ("client_id", "client_secret"),
    "password": ("username", "password"),
}
_FORM = {
    "type": "object",
    "maxProperties": _MAX_FIELDS,
    "additionalProperties": {"type": "string"},
    "required": ["grant_type"],
    "properties": {
        "grant_type": {"type": "string", "enum": list(_GRANTS)},
        "client_id": {"type": "string", "examples": ["camera-7"]},
        "client_secret": {"type": "string", "format": "password"},
        "username": {"type": "string"},
        "password": {"type": "string", "format": "password"},
        "scope": {
            "type": "string",
            "examples": ["model:read"],
            "description": "Ask for less than the user may do, also for one name: "
            "`model:read:yolov11-nano`. Default: all.",
        },
        "expires_in": {
            "type": "integer",
            "minimum": 1,
            "examples": [600],
            "description": "Seconds; ask for less than the gateway gives.",
        },
    },
}
_REVOCATION = {
    "type": "object",
    "maxProperties": _MAX_FIELDS,
    "additionalProperties": {"type": "string"},
    "required": ["token"],
    "properties": {
        "token": {"type": "string", "format": "password", "minLength": 1},
        "token_type_hint": {"type": "string", "examples": ["access_token"]},
    },
}

router = APIRouter(prefix="/auth", tags=["sign-in"])
keys_router = APIRouter(prefix="/.well-known", tags=["sign-in"])


@keys_router.get(
    "/jwks.json",
    operation_id="jwks",
    dependencies=[Public],
    responses={200: with_headers("Cache-Control")},
)
async def jwks(response: Response, gateway: GatewayDep) -> KeySet:
    """Return the public keys that tokens can be checked with (RFC 7517).

    None where tokens are signed with a secret (HS256): only gateways can check them.
    """
    response.headers["Cache-Control"] = "public, max-age=300"
    return KeySet.model_validate(gateway.tokens.jwks())


@router.post(
    "/token",
    operation_id="sign_in",
    dependencies=[Public],
    responses={
        200: with_headers("Cache-Control"),
        **describe(
            errors.UnauthenticatedError,
            errors.PermissionDeniedError,
            errors.InputError,
            errors.LimitExceededError,
            errors.RequestTimeoutError,
            errors.RateLimitedError,
            errors.SignInSlowedError,
            errors.DatabaseUnavailableError,
        ),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {_FORM_TYPE: {"schema": _FORM}}}
    },
)
async def sign_in(request: Request, response: Response, gateway: GatewayDep) -> Token:
    """Give a token for a user's name and secret.

    With `client_credentials` these may also come by HTTP Basic. `scope` narrows what
    the token may do, `expires_in` how long.
    """
    gateway.limits.count_sign_in(address_of(request))
    form = await _read_form(request)
    user_id, secret = _credentials(form, request.headers.get("authorization", ""))
    ttl_s = _lifetime(form.get("expires_in"))
    user = await anyio.to_thread.run_sync(
        gateway.sign_in.authenticate,
        user_id,
        secret,
        _actor(request, user_id),
        limiter=gateway.signing_in,
    )
    request.state.principal = user.user_id
    permissions = narrow(user.user_id, user.granted, form.get("scope"))
    issued = gateway.tokens.issue(user, permissions, ttl_s)
    response.headers["Cache-Control"] = "no-store"
    return Token(
        access_token=issued.text,
        expires_in=issued.expires_in,
        scope=" ".join(sorted(permissions)),
    )


@router.post(
    "/revoke",
    operation_id="revoke_token",
    dependencies=[Public],
    response_class=Response,
    responses=describe(
        errors.InputError,
        errors.LimitExceededError,
        errors.RequestTimeoutError,
        errors.RateLimitedError,
        errors.DatabaseUnavailableError,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_FORM_TYPE: {"schema": _REVOCATION}},
        }
    },
)
async def revoke(request: Request, gateway: GatewayDep) -> Response:
    """End a token before its time (RFC 7009). Whoever has it may end it.

    A token that is not valid anyway is answered alike.
    """
    gateway.limits.count_sign_in(address_of(request))
    form = await _read_form(request)
    if "token" not in form:
        raise errors.InputError("The form needs the field 'token'.")
    try:
        claims = gateway.tokens.check(form["token"])
    except errors.UnauthenticatedError:
        return Response()
    request.state.principal = claims.user_id
    await anyio.to_thread.run_sync(
        gateway.accounts.revoke_token,
        _actor(request, claims.user_id),
        claims.user_id,
        claims.jti,
        datetime.fromtimestamp(claims.expires, UTC) + timedelta(minutes=10),
    )
    return Response()


@router.get(
    "/me",
    operation_id="whoami",
    responses=describe(
        errors.UnauthenticatedError,
        errors.RateLimitedError,
        errors.DatabaseUnavailableError,
    ),
)
async def whoami(principal: AnyPrincipal) -> Whoami:
    """Say whose token this is, and what it may do now."""
    return Whoami(user=principal.id, permissions=sorted(principal.scopes))


def _actor(request: Request, user_id: str) -> Actor:
    return Actor(user_id, address_of(request), request_id_of(request.scope))


def _lifetime(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:12]) > 0):
        raise errors.InputError("expires_in must be a whole number of seconds from 1.")
    return int(text[:12])


async def _read_form(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != _FORM_TYPE:
        raise errors.InputError(f"Send a form: Content-Type {_FORM_TYPE}.")
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_S):
            async for piece in request.stream():
                body += piece
                if len(body) > _MAX_FORM:
                    raise errors.LimitExceededError(
                        "The form is too large.", limit=_MAX_FORM
                    )
    except TimeoutError:
        raise errors.RequestTimeoutError(
            f"The form did not come in {_FORM_S} s. Send it again."
        ) from None
    try:
        pairs = parse_qsl(body.decode(), errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise errors.InputError("The form is malformed, or not UTF-8.") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise errors.InputError("A field of the form is given more than once.")
    return form


def _credentials(form: Mapping[str, str], authorization: str) -> tuple[str, str]:
    grant = form.get("grant_type", "")
    if grant not in _GRANTS:
        raise errors.InputError(
            f"grant_type {grant[:64]!r} is not known. Use one of {', '.join(_GRANTS)}.",
            error="unsupported_grant_type",
        )
    kind, _, encoded = authorization.partition(" ")
    if grant == "client_credentials" and kind.lower() == "basic":
        return _basic(encoded)
    user_field, secret_field = _GRANTS[grant]
    if user_field not in form or secret_field not in form:
        raise errors.InputError(
            f"The form needs the fields {user_field!r} and {secret_field!r}.",
            error="invalid_request",
        )
    return form[user_field], form[secret_field]


def _basic(encoded: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise errors.UnauthenticatedError(
            "The header 'Authorization: Basic …' is malformed.",
            error="invalid_client",
            challenge="Basic",
        ) from error
    user_id, _, secret = decoded.partition(":")
    return unquote_plus(user_id), unquote_plus(secret)
