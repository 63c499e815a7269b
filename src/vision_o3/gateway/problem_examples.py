"""An example of each problem, as the OpenAPI document shows them.

The details are what the gateway says in such a case; programs read ``code``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vision_o3 import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

_CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
_OTHER_CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@dataclass(frozen=True, slots=True)
class Example:
    """What one problem document says."""

    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its members beside those that every problem has."""


EXAMPLES: Mapping[type[errors.VisionO3Error], Example] = {
    errors.VisionO3Error: Example(
        "The gateway failed. Tell its operator the request id."
    ),
    errors.InputError: Example(
        "The request is not valid. query.page: Input should be greater than or equal "
        "to 1.",
        {
            "errors": [
                {
                    "where": "query.page",
                    "message": "Input should be greater than or equal to 1",
                }
            ]
        },
    ),
    errors.InvalidCIDError: Example(
        "'Qm…' is a CIDv0. Give the content's CIDv1 (it begins with 'b')."
    ),
    errors.InvalidNameError: Example(
        "'My Model' cannot be a name. Use 1 to 128 of a-z, 0-9, '.', '_' and '-', "
        "starting with a letter or digit.",
        {"name": "My Model"},
    ),
    errors.InvalidVersionError: Example(
        "'v2' is not a version. Versions are whole numbers from 1 up."
    ),
    errors.InvalidPathError: Example(
        "'../a.jpg' is not a path that a file of an archive can have."
    ),
    errors.InvalidRangeError: Example(
        "There are no such bytes: the file has 10711040, counted from 0.",
        {"size": 10_711_040},
    ),
    errors.FormatError: Example(
        "This is not an ONNX file: it begins like a zip archive. Say the format that "
        "it has, or send the right file.",
        {"declared": "onnx"},
    ),
    errors.UnsafeContentError: Example(
        "Loading this file would run code: it imports 'os.system'. Save the weights "
        "alone (torch.save(model.state_dict(), …)) and publish those."
    ),
    errors.CIDMismatchError: Example(
        "The bytes that came are not what the declared CID names. Compute it again, "
        "or send the file again.",
        {"expected": _CID, "actual": _OTHER_CID},
    ),
    errors.IncompleteUploadError: Example(
        "The form ends before its last boundary. Send it again, whole."
    ),
    errors.MalformedRequestError: Example(
        "This is not a request of HTTP/1.1 that can be read in one way only. Send it "
        "with another client."
    ),
    errors.LimitExceededError: Example(
        "The file is larger than the 17179869184 bytes that are accepted "
        "(VISION_O3_MAX_UPLOAD_BYTES).",
        {"limit": 17_179_869_184},
    ),
    errors.HeadTooLargeError: Example(
        "The request's address and headers are longer than the 65536 bytes that are "
        "accepted (VISION_O3_MAX_HEAD_BYTES).",
        {"limit": 65_536},
    ),
    errors.UnauthenticatedError: Example(
        "The token has expired. Get a new one at POST /auth/token."
    ),
    errors.PermissionDeniedError: Example(
        "This needs the permission 'model:write', which your token does not carry. "
        "Ask for a token with it, or the operator for the permission.",
        {"scope": "model:write"},
    ),
    errors.NotFoundError: Example(
        "There is no model 'yolov11'. See GET /models.", {"name": "yolov11"}
    ),
    errors.ObjectNotFoundError: Example(
        "What the gateway's store holds is not what this CID names. Nothing of it was "
        "sent. Tell the operator the request id, or fetch the CID elsewhere."
    ),
    errors.WithdrawnError: Example(
        "Version 3 of 'yolov11' was withdrawn. Use another version.",
        {"name": "yolov11"},
    ),
    errors.VersionBlockedError: Example(
        "Version 3 of 'yolov11' is blocked: it was trained on mislabelled images. Use "
        "another version, or ask for it all the same with allow_blocked=true.",
        {"name": "yolov11", "reason": "it was trained on mislabelled images"},
    ),
    errors.VersionPurgedError: Example(
        "Version 3 of 'yolov11' was deleted for good: it showed persons who did not "
        "consent. Use another version.",
        {"name": "yolov11", "reason": "it showed persons who did not consent"},
    ),
    errors.ConflictError: Example(
        "Another request changed this at the same time. Read it again, and decide."
    ),
    errors.AlreadyExistsError: Example(
        "There is a user 'camera-7' already. Choose another name.",
        {"name": "camera-7"},
    ),
    errors.ContentNeededError: Example(
        f"The gateway does not have {_CID}. Send the bytes first, in parts (PUT "
        f"/uploads/{_CID}), or with this form as the part 'file'.",
        {"cid": _CID},
    ),
    errors.UploadInProgressError: Example(
        "Another upload to 'yolov11' is being stored. Try again in a moment.",
        {"name": "yolov11"},
    ),
    **dict.fromkeys(
        (
            errors.IntegrityError,
            errors.DigestMismatchError,
            errors.LengthMismatchError,
            errors.MalformedBlockError,
            errors.MissingBlockError,
        ),
        Example(
            "What the gateway's store holds is not what this CID names. Nothing of it "
            "was sent. Tell the operator the request id, or fetch the CID elsewhere."
        ),
    ),
    errors.StorageError: Example(
        "The gateway's storage failed. Tell its operator the request id."
    ),
    errors.TransientStorageError: Example(
        "The gateway's storage cannot be reached now."
    ),
    errors.StorageFullError: Example(
        "The gateway has no room for this file now. Tell its operator, or try a "
        "smaller one."
    ),
    errors.QuotaExceededError: Example(
        "You have published 1099511627776 bytes, and may publish no more. Ask the "
        "operator for a larger quota.",
        {"limit": 1_099_511_627_776},
    ),
    errors.RateLimitedError: Example(
        "More than 6000 requests in a minute. Wait 12 s, or ask the operator for more "
        "(VISION_O3_MAX_REQUESTS_PER_MINUTE).",
        {"limit": 6000},
    ),
    errors.SignInSlowedError: Example(
        "Too many attempts to sign in failed. Wait 30 s, then try again with the "
        "right secret."
    ),
    errors.TooManyTransfersError: Example(
        "You have 128 downloads under way at this gateway, and more are not accepted. "
        "Try again when one has ended, or ask the operator for more "
        "(VISION_O3_MAX_DOWNLOADS_PER_USER).",
        {"limit": 128},
    ),
    errors.DatabaseUnavailableError: Example(
        "The gateway's database cannot be reached now."
    ),
    errors.GatewayBusyError: Example(
        "The gateway is being stopped. Try again in a moment."
    ),
    errors.RequestTimeoutError: Example(
        "The request's head did not come in 15 s. Send it again."
    ),
}
"""Of every error that a gateway answers."""
