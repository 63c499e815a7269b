"""Errors to problem documents (RFC 9457): the only table of statuses."""

from __future__ import annotations

import asyncio
import http
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vision_o3 import errors
from vision_o3.gateway.contract import complete, problem_responses
from vision_o3.gateway.middleware import request_id_of
from vision_o3.gateway.redaction import Redaction
from vision_o3.schemas.problems import MEDIA_TYPE, FieldError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_ERRORS = 20
"""Field errors that one answer lists."""
_SHOWN_VALUES = frozenset(
    {"actual", "cid", "declared", "error", "expected", "limit", "name", "scope", "size"}
)
"""Facts of errors that may be shown; others, such as keys, are the operator's."""

_REDACT = Redaction()
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    detail: str | None = None
    """Said instead of the error's own message, which is the operator's to read."""
    retry_after_s: int | None = None


_STOPPED = errors.GatewayBusyError(
    "The gateway is being stopped. Try again in a moment.", retry_after_s=5
)
_INTERNAL = _Row(500, "The gateway failed. Tell its operator the request id.")
_DAMAGED = _Row(
    502,
    "What the gateway's store holds is not what this CID names. Nothing of it was "
    "sent. Tell the operator the request id, or fetch the CID elsewhere.",
)

# The row of a class is that of its nearest ancestor here.
_TABLE: Mapping[type[errors.VisionO3Error], _Row] = {
    errors.VisionO3Error: _INTERNAL,
    errors.InputError: _Row(422),
    errors.InvalidRangeError: _Row(416),
    errors.IncompleteUploadError: _Row(400),
    errors.MalformedRequestError: _Row(400),
    errors.LimitExceededError: _Row(413),
    errors.HeadTooLargeError: _Row(431),
    errors.AuthError: _Row(403),
    errors.UnauthenticatedError: _Row(401),
    errors.PermissionDeniedError: _Row(403),
    errors.NotFoundError: _Row(404),
    errors.ObjectNotFoundError: _DAMAGED,
    errors.WithdrawnError: _Row(410),
    errors.VersionBlockedError: _Row(403),
    errors.VersionPurgedError: _Row(410),
    errors.ConflictError: _Row(409),
    errors.UploadInProgressError: _Row(409, retry_after_s=2),
    errors.IntegrityError: _DAMAGED,
    errors.StorageError: _Row(
        500, "The gateway's storage failed. Tell its operator the request id."
    ),
    errors.TransientStorageError: _Row(
        503, "The gateway's storage cannot be reached now.", retry_after_s=5
    ),
    errors.StorageFullError: _Row(507),
    errors.QuotaExceededError: _Row(403),
    errors.RateLimitedError: _Row(429, retry_after_s=1),
    errors.TooManyTransfersError: _Row(429, retry_after_s=2),
    errors.RequestTimeoutError: _Row(408, retry_after_s=1),
    errors.DatabaseUnavailableError: _Row(
        503, "The gateway's database cannot be reached now.", retry_after_s=5
    ),
    errors.GatewayBusyError: _Row(503, retry_after_s=15),
    errors.CacheError: _INTERNAL,
    errors.ConfigurationError: _INTERNAL,
    errors.TransportError: _INTERNAL,
}


def status_of(error_class: type[errors.VisionO3Error]) -> int:
    """Return the HTTP status that an error is answered with."""
    return _row_of(error_class).status


def describe(*error_classes: type[errors.VisionO3Error]) -> dict[int | str, Any]:
    """Return the ``responses`` of a route that may answer these errors.

    What any route may answer, or any that needs a token, need not be among them.
    """
    return dict(problem_responses(error_classes, status_of).items())


def install(app: FastAPI) -> None:
    """Answer every error of the app with a problem document."""
    handlers = app.exception_handlers
    handlers[errors.VisionO3Error] = _answer_ours
    handlers[RequestValidationError] = _answer_validation
    handlers[HTTPException] = _answer_http
    app.add_middleware(LastResort)
    complete(app, status_of)


def _row_of(error_class: type[errors.VisionO3Error]) -> _Row:
    return next(_TABLE[cls] for cls in error_class.__mro__ if cls in _TABLE)


def render(
    error: errors.VisionO3Error, request_id: str
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body of the answer that an error is."""
    row = _row_of(type(error))
    headers = {"Content-Type": MEDIA_TYPE}
    retry_after_s = error.values.get("retry_after_s", row.retry_after_s)
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, errors.AuthError):
        headers["WWW-Authenticate"] = error.values.get("challenge", "Bearer")
    if isinstance(error, errors.InvalidRangeError) and "size" in error.values:
        headers["Content-Range"] = f"bytes */{error.values['size']}"
    shown = {k: v for k, v in error.values.items() if k in _SHOWN_VALUES}
    if isinstance(error, errors.WithdrawnError):
        shown["reason"] = error.values.get("reason", "")
    code = errors.VisionO3Error.code if row is _INTERNAL else error.code
    detail = row.detail or error.message
    return row.status, headers, _document(request_id, row.status, code, detail, shown)


def _answer_ours(request: Request, error: errors.VisionO3Error) -> Response:
    row = _row_of(type(error))
    if row.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        corrupt = isinstance(error, errors.IntegrityError)
        _log.error(
            "artifact.corrupt" if corrupt else "request.failed",
            code=error.code,
            reason=error.message,
            exc_info=row is _INTERNAL,
        )
    status, headers, content = render(error, request_id_of(request.scope))
    # What is logged and counted of the request.
    request.state.code = errors.VisionO3Error.code if row is _INTERNAL else error.code
    request.state.refusal = error.values.get("refused")
    return Response(content, status, headers)


def _answer_validation(request: Request, error: RequestValidationError) -> Response:
    found = [
        FieldError(
            where=".".join(str(part) for part in each["loc"]),
            message=each["msg"].removeprefix("Value error, "),
        )
        for each in error.errors()[:_MAX_ERRORS]
    ]
    detail = "; ".join(f"{each.where}: {each.message}" for each in found)
    return _problem(
        request,
        status_of(errors.InputError),
        errors.InputError.code,
        f"The request is not valid. {detail}.",
        errors=[each.model_dump() for each in found],
    )


def _answer_http(request: Request, error: HTTPException) -> Response:
    if isinstance(error.__cause__, errors.VisionO3Error):
        # FastAPI met it while it read the body, and calls it a body it cannot parse.
        return _answer_ours(request, error.__cause__)
    status = error.status_code
    if status == http.HTTPStatus.NOT_FOUND:
        code, detail = errors.NotFoundError.code, "There is no such page. See /docs."
    elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        code = "method_not_allowed"
        detail = f"This page does not know the method {request.method}. See /docs."
        return _problem(request, status, code, detail, _allowed(request))
    elif status == http.HTTPStatus.BAD_REQUEST:
        status = status_of(errors.InputError)
        code, detail = errors.InputError.code, "The body is not JSON that can be read."
    else:
        code, detail = errors.InputError.code, str(error.detail)
    return _problem(request, status, code, detail, error.headers)


def _allowed(request: Request) -> dict[str, str]:
    """Return the header that lists a page's methods, of all routes that share it."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = request.app.openapi()["paths"].get(path, {"get": None})
    return {"Allow": ", ".join(sorted(method.upper() for method in methods))}


class LastResort:
    """Answers an error that nobody foresaw, without saying more than that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; after its answer began, break the connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except asyncio.CancelledError:
            # The server is being stopped, and has waited long enough.
            if not started:
                answer = _answer_ours(Request(scope, receive), _STOPPED)
                await answer(scope, receive, send)
            raise
        except Exception as error:  # noqa: BLE001 - the process's edge
            code = errors.VisionO3Error.code
            _log.error("request.failed", code=code, exc_info=error)
            if not started:
                request = Request(scope, receive)
                answer = _problem(request, 500, code, _INTERNAL.detail or "")
                await answer(scope, receive, send)


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **values: object,
) -> Response:
    request.state.code = code
    content = _document(request_id_of(request.scope), status, code, detail, values)
    return Response(content, status, headers, media_type=MEDIA_TYPE)


def _document(
    request_id: str, status: int, code: str, detail: str, values: Mapping[str, object]
) -> bytes:
    document = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
    ).model_dump(exclude_none=True)
    # ASCII only: a lone surrogate in a caller's text must not fail here.
    # A token that a caller has put in a wrong place is not shown in the answer either.
    return _REDACT(json.dumps({**document, **values})).encode()
