"""Every error class of Vision-O3, for gateway and edge alike.

Families answer "what may the caller do about it"::

    VisionO3Error
    ├── InputError               mend the input
    │   ├── InvalidCIDError          invalid_cid
    │   ├── InvalidNameError         invalid_name
    │   ├── InvalidVersionError      invalid_version
    │   ├── InvalidPathError         invalid_path
    │   ├── InvalidRangeError        invalid_range
    │   ├── FormatError              format_mismatch
    │   ├── UnsafeContentError       unsafe_content
    │   ├── CIDMismatchError         cid_mismatch
    │   ├── IncompleteUploadError    incomplete_upload
    │   ├── MalformedRequestError    malformed_request
    │   └── LimitExceededError       too_large
    │       └── HeadTooLargeError        head_too_large
    ├── AuthError                sign in, or ask for a permission
    │   ├── UnauthenticatedError     unauthenticated
    │   └── PermissionDeniedError    permission_denied
    ├── NotFoundError            look elsewhere (not_found)
    │   └── ObjectNotFoundError      object_not_found
    ├── WithdrawnError           use another version (withdrawn)
    │   ├── VersionBlockedError      version_blocked
    │   └── VersionPurgedError       version_purged
    ├── ConflictError            re-read and decide
    │   ├── AlreadyExistsError       already_exists
    │   ├── ContentNeededError       content_needed
    │   └── UploadInProgressError    upload_in_progress
    ├── IntegrityError           distrust the source (integrity_error)
    │   ├── DigestMismatchError      digest_mismatch
    │   ├── LengthMismatchError      length_mismatch
    │   ├── MalformedBlockError      malformed_block
    │   └── MissingBlockError        missing_block
    ├── StorageError             tell the operator (storage_error)
    │   ├── TransientStorageError    storage_unavailable
    │   └── StorageFullError         storage_full
    ├── QuotaExceededError       ask the operator for room (quota_exceeded)
    ├── RateLimitedError         wait as long as is said (rate_limited)
    │   ├── SignInSlowedError        sign_in_slowed
    │   └── TooManyTransfersError    too_many_transfers
    ├── DatabaseUnavailableError wait, then try again (database_unavailable)
    ├── GatewayBusyError         wait, then try again (gateway_busy)
    ├── RequestTimeoutError      send faster, or try again (request_timeout)
    ├── CacheError               (edge) make room or fix permissions (cache_error)
    ├── ConfigurationError       mend the settings (invalid_configuration)
    ├── TransportError           (edge) the exchange did not complete (transport_error)
    │   ├── OfflineError             offline
    │   └── DeadlineExceededError    deadline_exceeded
    └── CancelledError           (edge) ask again: it goes on where it was (cancelled)

``code`` is stable and never reused: it travels in the gateway's problem documents,
and ``from_code`` turns it back into the same class on the device. ``retryable``
says whether the same call may succeed later. Values given as keywords become
attributes (``error.expected``) and are listed in ``values``.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Type


class VisionO3Error(Exception):
    """Root of all errors raised on purpose by Vision-O3.

    Args:
        message: One or two sentences: what was wrong, what to do.
        **values: Facts for programs, each set as an attribute.
    """

    code = "internal"
    retryable = False

    def __init__(self, message: str, **values: Any) -> None:  # noqa: ANN401 - any fact
        super().__init__(message)
        self.message = message
        self.values: Dict[str, Any] = values
        for name, value in values.items():
            setattr(self, name, value)


class InputError(VisionO3Error):
    """The request itself is wrong: the same input will never be accepted."""

    code = "invalid_input"


class InvalidCIDError(InputError):
    """Not a CID of the accepted kind (CIDv1, raw or dag-pb, sha2-256)."""

    code = "invalid_cid"


class InvalidNameError(InputError):
    """Not an acceptable name for a model or dataset."""

    code = "invalid_name"


class InvalidVersionError(InputError):
    """Not a version number (a whole number from 1 up)."""

    code = "invalid_version"


class InvalidPathError(InputError):
    """Not a path that a file of an archive can have (``path``)."""

    code = "invalid_path"


class InvalidRangeError(InputError):
    """The byte range lies outside the content (``size`` is its length in bytes)."""

    code = "invalid_range"


class FormatError(InputError):
    """The content is not of the declared format."""

    code = "format_mismatch"


class UnsafeContentError(InputError):
    """The content could run code when it is loaded."""

    code = "unsafe_content"


class CIDMismatchError(InputError):
    """The uploaded bytes are not what the declared CID names."""

    code = "cid_mismatch"


class IncompleteUploadError(InputError):
    """The body ended before the form did."""

    code = "incomplete_upload"


class MalformedRequestError(InputError):
    """Not a request of HTTP/1.1, or one that could be read in two ways."""

    code = "malformed_request"


class LimitExceededError(InputError):
    """A configured limit was exceeded (``limit`` says which value)."""

    code = "too_large"


class HeadTooLargeError(LimitExceededError):
    """The request's address and headers are longer than is accepted (``limit``)."""

    code = "head_too_large"


class AuthError(VisionO3Error):
    """Who asks, or what they may do, is the problem."""

    code = "auth_error"


class UnauthenticatedError(AuthError):
    """No valid credentials came with the request."""

    code = "unauthenticated"


class PermissionDeniedError(AuthError):
    """The principal lacks the scope that the operation needs (``scope``)."""

    code = "permission_denied"


class NotFoundError(VisionO3Error):
    """No such model, dataset, version or content."""

    code = "not_found"


class ObjectNotFoundError(NotFoundError):
    """The store holds no object under ``key``."""

    code = "object_not_found"


class WithdrawnError(VisionO3Error):
    """The version was published, and is not to be used any more (``reason``)."""

    code = "withdrawn"


class VersionBlockedError(WithdrawnError):
    """The version is blocked: served only to those who ask for it all the same."""

    code = "version_blocked"


class VersionPurgedError(WithdrawnError):
    """The version's bytes were deleted for good; its number stays taken."""

    code = "version_purged"


class ConflictError(VisionO3Error):
    """Another writer was there first."""

    code = "conflict"


class AlreadyExistsError(ConflictError):
    """Something of this name exists already."""

    code = "already_exists"


class ContentNeededError(ConflictError):
    """The content was named, not sent, and the gateway does not have it (``cid``)."""

    code = "content_needed"


class UploadInProgressError(ConflictError):
    """Another upload to the same line is being stored (``retry_after_s``)."""

    code = "upload_in_progress"
    retryable = True


class IntegrityError(VisionO3Error):
    """Bytes are not what the CID names. They are never returned, kept or used."""

    code = "integrity_error"


class DigestMismatchError(IntegrityError):
    """A block's bytes do not hash to its digest (``expected``, ``actual``)."""

    code = "digest_mismatch"


class LengthMismatchError(IntegrityError):
    """More or fewer bytes than the CID names (``expected``, ``actual``)."""

    code = "length_mismatch"


class MalformedBlockError(IntegrityError):
    """A node or sidecar does not follow its format or the import profile."""

    code = "malformed_block"


class MissingBlockError(IntegrityError):
    """A node that the DAG links to is absent from the sidecar."""

    code = "missing_block"


class StorageError(VisionO3Error):
    """The object store failed in a way that waiting does not mend."""

    code = "storage_error"


class TransientStorageError(StorageError):
    """The object store failed in a way that may pass."""

    code = "storage_unavailable"
    retryable = True


class StorageFullError(StorageError):
    """No space left where bytes are received or kept."""

    code = "storage_full"


class QuotaExceededError(VisionO3Error):
    """The principal has published as much as they may (``limit``)."""

    code = "quota_exceeded"


class RateLimitedError(VisionO3Error):
    """Too many requests in a short time (``retry_after_s``)."""

    code = "rate_limited"
    retryable = True


class SignInSlowedError(RateLimitedError):
    """Too many attempts to sign in failed (``retry_after_s``)."""

    code = "sign_in_slowed"


class TooManyTransfersError(RateLimitedError):
    """The principal has as many transfers under way as they may (``limit``)."""

    code = "too_many_transfers"


class DatabaseUnavailableError(VisionO3Error):
    """The metadata database did not answer; what was asked may have been done."""

    code = "database_unavailable"
    retryable = True


class GatewayBusyError(VisionO3Error):
    """The gateway has too much to do, or is being stopped (``retry_after_s``)."""

    code = "gateway_busy"
    retryable = True


class RequestTimeoutError(VisionO3Error):
    """The request did not come in the time that it may take."""

    code = "request_timeout"
    retryable = True


class CacheError(VisionO3Error):
    """The device's cache cannot be written or read."""

    code = "cache_error"


class ConfigurationError(VisionO3Error):
    """A setting is missing or contradicts another."""

    code = "invalid_configuration"


class TransportError(VisionO3Error):
    """The exchange with the gateway did not complete."""

    code = "transport_error"
    retryable = True


class OfflineError(TransportError):
    """The network would be needed, and the client was told not to use it."""

    code = "offline"
    retryable = False


class DeadlineExceededError(TransportError):
    """The call took longer than it was given (``deadline_s``)."""

    code = "deadline_exceeded"
    retryable = False


class CancelledError(VisionO3Error):
    """The call was cancelled. What it had got by then is kept for the next one."""

    code = "cancelled"


def _tree(root: Type[VisionO3Error]) -> Iterator[Type[VisionO3Error]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def from_code(code: str) -> Optional[Type[VisionO3Error]]:
    """Return the class whose ``code`` this is, or ``None`` for an unknown one."""
    for cls in _tree(VisionO3Error):
        if cls.code == code:
            return cls
    return None
