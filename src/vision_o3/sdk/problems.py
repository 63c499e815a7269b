"""Problem documents (RFC 9457) back into the same error classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, Optional, Type

from vision_o3 import errors
from vision_o3.errors import VisionO3Error

if TYPE_CHECKING:
    from vision_o3.sdk.transport import Response

_MAX_PROBLEM_SIZE = 1 << 16
_LONGEST_WAIT_S = 3600.0
_BY_STATUS: Dict[int, Type[VisionO3Error]] = {
    401: errors.UnauthenticatedError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    410: errors.NotFoundError,
    412: errors.ConflictError,
    413: errors.LimitExceededError,
    416: errors.InvalidRangeError,
    408: errors.RequestTimeoutError,
    429: errors.RateLimitedError,
    502: errors.TransportError,
    503: errors.TransportError,
    504: errors.TransportError,
    507: errors.StorageFullError,
}
"""For answers without a code that is known, such as those of a proxy."""
_NOT_A_GATEWAYS = (
    None,
    VisionO3Error,
    errors.CacheError,
    errors.CancelledError,
    errors.DeadlineExceededError,
    errors.OfflineError,
)
"""What only the device says: a gateway cannot end a call in its name."""
_WILL_NOT_PASS = frozenset({401, 403, 404, 405, 410, 416})
_OWN_NAMES = frozenset(
    {"type", "title", "detail", "message", "values", "retryable", "retry_after_s"}
)
_CLIENT_ERROR = 400
_SERVER_ERROR = 500
_TOO_MANY_REQUESTS = 429


def problem_error(response: Response, now: float) -> VisionO3Error:
    """Return the error that an answer tells, ready to be raised.

    Facts of the document become attributes; ``status``, ``request_id`` and
    ``retry_after_s`` too.

    Args:
        response: Its body is read, as far as it is a problem document's.
        now: Seconds since 1970, for a ``Retry-After`` that is a date.
    """
    document = _read_document(response)
    status = response.status
    code = document.get("code")
    known = errors.from_code(code) if isinstance(code, str) else None
    if known in _NOT_A_GATEWAYS or (
        status == _TOO_MANY_REQUESTS and not _is_rate_limit(known)
    ):
        known = _BY_STATUS.get(status)
    if known is None:
        known = VisionO3Error if status >= _SERVER_ERROR else errors.InputError
        if status < _CLIENT_ERROR:
            known = errors.TransportError
    detail = document.get("detail")
    if not isinstance(detail, str) or not detail:
        detail = f"The answer was {status}, without more words."
    values = {
        name: value
        for name, value in document.items()
        if isinstance(value, (str, int, float)) and _is_fact(name)
    }
    values["status"] = status
    if status < _CLIENT_ERROR:  # such as a redirect without a target
        values["retryable"] = False
    retry_after_s = _seconds(response.headers.get("retry-after", ""), now)
    if retry_after_s is not None:
        values["retry_after_s"] = retry_after_s
    return known(detail, **values)


def _is_rate_limit(known: Optional[Type[VisionO3Error]]) -> bool:
    return known is not None and issubclass(known, errors.RateLimitedError)


def status_error(response: Response, host: str, now: float) -> errors.TransportError:
    """Return the error that a status of another server than the gateway tells.

    Args:
        response: The answer.
        host: Whose it is.
        now: Seconds since 1970, for a ``Retry-After`` that is a date.
    """
    values: Dict[str, Any] = {"status": response.status}
    retry_after_s = _seconds(response.headers.get("retry-after", ""), now)
    if retry_after_s is not None:
        values["retry_after_s"] = retry_after_s
    return errors.TransportError(
        f"{host} answered {response.status}.",
        retryable=response.status not in _WILL_NOT_PASS,
        **values,
    )


def not_understood(reason: str) -> errors.TransportError:
    """Return the error for an answer that does not follow the contract."""
    return errors.TransportError(
        f"The gateway's answer is not understood: {reason.rstrip('.')}. "
        "Is the URL that of a Vision-O3 gateway?",
        retryable=False,
    )


def _read_document(response: Response) -> Dict[str, Any]:
    """Return the document, or an empty one if there is none: the status counts."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/problem+json", "application/json"):
        return {}
    body = bytearray()
    buffer = memoryview(bytearray(_MAX_PROBLEM_SIZE))
    try:
        while len(body) < _MAX_PROBLEM_SIZE:
            count = response.readinto(buffer[len(body) :])
            if not count:
                break
            body += buffer[len(body) : len(body) + count]
        document = json.loads(bytes(body).decode())
    # RecursionError: brackets without end.
    except (errors.TransportError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_fact(name: str) -> bool:
    return (
        name.isidentifier()
        and not name.startswith("_")
        and name not in _OWN_NAMES
        and not hasattr(VisionO3Error, name)  # ``code``, ``args`` and such
    )


def _seconds(retry_after: str, now: float) -> Optional[float]:
    """Return the seconds that a Retry-After asks for (RFC 9110 section 10.2.3)."""
    text = retry_after.strip()
    if not text:
        return None
    if text.isdigit() and text.isascii():
        return float(min(int(text[:10]), int(_LONGEST_WAIT_S)))
    import email.utils  # noqa: PLC0415 - seldom needed

    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return min(max(0.0, then - now), _LONGEST_WAIT_S)
