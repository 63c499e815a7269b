"""The route that gives tokens for credentials (OAuth2, RFC 6749)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from vision_o3 import errors
from vision_o3.gateway.auth import authenticate, narrow
from vision_o3.gateway.deps import GatewayDep, Public
from vision_o3.gateway.problems import describe
from vision_o3.schemas.service import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_FORM = 16 << 10
"""Bytes."""
_MAX_FIELDS = 16
_FORM_TYPE = "application/x-www-form-urlencoded"
_GRANTS = {
    "client_credentials": ("client_id", "client_secret"),
    "password": ("username", "password"),
}
_FORM = {
    "type": "object",
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
            "description": "Ask for less than the user may do. Default: all.",
        },
    },
}

router = APIRouter(prefix="/auth", tags=["sign-in"])


@router.post(
    "/token",
    operation_id="sign_in",
    dependencies=[Public],
    responses=describe(
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.InputError,
        errors.LimitExceededError,
        errors.DatabaseUnavailableError,
    ),
    openapi_extra={
        "requestBody": {"required": True, "content": {_FORM_TYPE: {"schema": _FORM}}}
    },
)
async def sign_in(request: Request, response: Response, gateway: GatewayDep) -> Token:
    """Give a token for a user's name and secret.

    With `client_credentials` these may also come by HTTP Basic. `scope` narrows what
    the token may do.
    """
    form = await _read_form(request)
    user_id, secret = _credentials(form, request.headers.get("authorization", ""))
    principal = await anyio.to_thread.run_sync(
        authenticate, gateway.database, user_id, secret, limiter=gateway.signing_in
    )
    request.state.principal = principal.id
    principal = narrow(principal, form.get("scope"))
    response.headers["Cache-Control"] = "no-store"
    return Token(
        access_token=gateway.tokens.issue(principal),
        expires_in=gateway.tokens.ttl_s,
        scope=" ".join(sorted(principal.scopes)),
    )


async def _read_form(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != _FORM_TYPE:
        raise errors.InputError(f"Send a form: Content-Type {_FORM_TYPE}.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_FORM:
            raise errors.LimitExceededError("The form is too large.", limit=_MAX_FORM)
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
