"""What S3 stores answer when they refuse or fail, as our errors.

One table: from the code in the body of an answer, or else from its status, to a class
and a sentence that tells the operator what to do. The text of an answer never becomes
part of a message, as it may hold signatures and URLs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vision_o3.errors import StorageError, StorageFullError, TransientStorageError

_CODE = re.compile(r"<Code>([A-Za-z][A-Za-z0-9.]{0,63})</Code>")
_STATUS = re.compile(r"status code: ([1-5][0-9]{2})")
_SAID = {
    "redirect without": "PermanentRedirect",
    "non-partial response": "ranges",
    "Content-Range": "ranges",
    "Requested": "ranges",
}
"""What ``obstore`` says, in the order that it is looked for."""
_DEBUGGED = {
    "dns error": "dns",
    "kind: Timeout": "timeout",
    "TimedOut": "timeout",
    "InvalidContentType": "tls",
    "ertificate": "tls",
    "kind: Connect": "unreachable",
}
"""What it tells of a connection, likewise."""
_PLAIN_CODE = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,63}")
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of one failed request."""

    reason: str
    """The store's code (``NoSuchBucket``), or a word of the table below."""
    status: int | None = None
    """The HTTP status, if there was an answer."""


@dataclass(frozen=True, slots=True)
class _Kind:
    family: type[StorageError]
    sentence: str
    """What the store does, and what to do about it."""


_KEYS: _Kind = _Kind(
    StorageError,
    "does not accept the access key or its secret. Check both, and that they are "
    "keys of this store",
)
_DENIED: _Kind = _Kind(
    StorageError,
    "denies access. Check the keys, and that they may read, write, list and delete "
    "in this bucket",
)
_REGION: _Kind = _Kind(
    StorageError,
    "expects another region. Set the region that its operator names",
)
_EXPIRED: _Kind = _Kind(
    StorageError,
    "says that the session token has expired or is wrong. Set a new one",
)
_UNSUPPORTED: _Kind = _Kind(
    StorageError,
    "does not support a request or header that the gateway sent. See what it can do "
    "with: vision-o3 admin check-store",
)
_BUSY: _Kind = _Kind(
    TransientStorageError, "is busy or failed for now. Try again later"
)
_DAMAGED: _Kind = _Kind(
    TransientStorageError,
    "received something else than was sent. Try again; if it goes on, check the "
    "network and proxies on the way",
)
_BROKEN_OFF: _Kind = _Kind(TransientStorageError, "broke off in the middle. Try again")
_FULL: _Kind = _Kind(StorageFullError, "has no space left, or the quota is used up")

_BY_REASON: dict[str, _Kind] = {
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "RequestTimeTooSkewed": _Kind(
        StorageError,
        "has another time than this machine. Set this machine's clock, for example "
        "by NTP",
    ),
    "NoSuchBucket": _Kind(
        StorageError,
        "has no such bucket. Create it, or correct its name",
    ),
    "InvalidBucketName": _Kind(StorageError, "does not accept the bucket's name"),
    "InvalidArgument": _UNSUPPORTED,
    "InvalidRequest": _UNSUPPORTED,
    "NotImplemented": _UNSUPPORTED,
    "MethodNotAllowed": _UNSUPPORTED,
    "EntityTooLarge": _Kind(StorageError, "does not take objects of this size"),
    "EntityTooSmall": _Kind(StorageError, "does not take parts of this size"),
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "StorageFull": _FULL,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "Throttling": _BUSY,
    "ThrottlingException": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "TooManyRequests": _BUSY,
    "OperationAborted": _BUSY,
    "ConditionalRequestConflict": _BUSY,
    "BadDigest": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "IncompleteBody": _DAMAGED,
    "InvalidPart": _DAMAGED,
    "NoSuchUpload": _Kind(
        TransientStorageError,
        "no longer has the parts of this upload. Try again",
    ),
    # Words for what has no code.
    "dns": _Kind(TransientStorageError, "cannot be found by its name (DNS)"),
    "tls": _Kind(
        TransientStorageError,
        "does not speak TLS as expected. Check that the endpoint begins with the right "
        "one of http:// and https://, and its certificate",
    ),
    "timeout": _Kind(TransientStorageError, "did not answer in time"),
    "unreachable": _Kind(
        TransientStorageError,
        "cannot be reached. Check the endpoint and the network",
    ),
    "connection": _BROKEN_OFF,
    "short": _BROKEN_OFF,
    "unreadable": _Kind(
        TransientStorageError,
        "gave an answer that is not S3. Check that the endpoint is an S3 API",
    ),
    "ranges": _Kind(
        StorageError,
        "does not honour ranges (HTTP header Range), which downloads need. Use another "
        "store, or mend the proxy before it",
    ),
}

_BY_STATUS: dict[int, _Kind] = {
    301: _REGION,
    307: _REGION,
    400: _Kind(
        StorageError,
        "does not understand the request. Check region, endpoint and session token",
    ),
    401: _KEYS,
    403: _DENIED,
    405: _UNSUPPORTED,
    408: _BUSY,
    409: _BUSY,
    413: _BY_REASON["EntityTooLarge"],
    429: _BUSY,
    501: _UNSUPPORTED,
    507: _FULL,
}


def error_of(failure: Failure, host: str, what: str) -> StorageError:
    """Return our error for a failed request.

    Args:
        failure: What is known of it.
        host: Where the store is, as the operator wrote it.
        what: What was asked for: ``models/yolo/v1.onnx``, ``the list of objects``.
    """
    kind = _BY_REASON.get(failure.reason) or _BY_STATUS.get(failure.status or 0)
    if kind is None:
        unwell = failure.status is None or failure.status >= _SERVER_ERROR
        kind = _BUSY if unwell else _Kind(StorageError, "refused the request")
    return kind.family(
        f"The object store at {host} {kind.sentence} ({failure.reason}, {what}).",
        reason=failure.reason,
        status=failure.status,
    )


def failure_of_obstore(error: Exception) -> Failure:
    """Return what an error of ``obstore`` says, which has it in its text only."""
    text = str(error)
    said, _, debug = text.partition("Debug source:")
    if status := _STATUS.search(said):
        code = _CODE.search(said)
        number = int(status[1])
        return Failure(code[1] if code else f"http-{number}", number)
    for mark, reason in _SAID.items():
        if mark in said:
            return Failure(reason)
    for mark, reason in _DEBUGGED.items():
        if mark in debug:
            return Failure(reason)
    return Failure("connection")


def failure_of_botocore(error: Exception) -> Failure:
    """Return what an error of ``botocore`` says."""
    from botocore import exceptions as aws  # noqa: PLC0415 - loaded when first used

    if isinstance(error, aws.ClientError):
        found = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # Without a body the code is the status, or one that botocore made of it.
        code = found if _PLAIN_CODE.fullmatch(found) else f"http-{status}"
        return Failure(code, status)
    if isinstance(error, aws.EndpointConnectionError):
        by_name = "NameResolution" in type(error.kwargs.get("error")).__name__
        return Failure("dns" if by_name else "unreachable")
    reasons: dict[str, tuple[type[Exception], ...]] = {
        # The other parameters are always right.
        "InvalidBucketName": (aws.ParamValidationError,),
        "timeout": (aws.ConnectTimeoutError, aws.ReadTimeoutError),
        "tls": (aws.SSLError,),
        "connection": (aws.HTTPClientError, OSError),
    }
    for reason, families in reasons.items():
        if isinstance(error, families):
            return Failure(reason)
    return Failure("unreadable")
