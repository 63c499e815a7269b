"""Publishing over HTTP: a form becomes a submission and a spooled file."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.errors import InputError
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.forms import CID_FIELD, FILE, receive_form
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import path_of
from vision_o3.registry.permissions import ADMIN
from vision_o3.registry.values import (
    MAX_DESCRIPTION,
    MAX_LABEL,
    MAX_TAGS,
    Published,
    Submission,
)
from vision_o3.registry.watching import Step
from vision_o3.schemas.versions import CID_PATTERN, NAME_PATTERN, split_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from vision_o3.gateway.deps import Gateway
    from vision_o3.gateway.forms import Fields
    from vision_o3.registry.permissions import Principal
    from vision_o3.registry.services import ArtifactService
    from vision_o3.settings import Settings


_ERRORS = (
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.InputError,
    errors.InvalidNameError,
    errors.InvalidCIDError,
    errors.FormatError,
    errors.UnsafeContentError,
    errors.CIDMismatchError,
    errors.IncompleteUploadError,
    errors.LimitExceededError,
    errors.VersionBlockedError,
    errors.VersionPurgedError,
    errors.UploadInProgressError,
    errors.ContentNeededError,
    errors.TransientStorageError,
    errors.DatabaseUnavailableError,
    errors.GatewayBusyError,
    errors.StorageFullError,
    errors.RateLimitedError,
    errors.TooManyTransfersError,
    errors.QuotaExceededError,
)


@dataclass(frozen=True, slots=True)
class FormField:
    """One field of an upload form.

    Attributes:
        fills: The field of ``Submission`` that it becomes.
        schema: What OpenAPI says of it.
    """

    fills: str
    schema: dict[str, Any]


LABEL = {
    "type": "string",
    "maxLength": MAX_LABEL,
    "pattern": "^[A-Za-z0-9_][A-Za-z0-9_ .+:/-]*$",
}
COMMON_FIELDS = {
    "name": FormField(
        "name",
        {"type": "string", "pattern": NAME_PATTERN, "examples": ["yolov11-nano"]},
    ),
    "description": FormField(
        "description", {"type": "string", "maxLength": MAX_DESCRIPTION}
    ),
    "tags": FormField(
        "tags",
        {
            "type": "array",
            "items": LABEL,
            "maxItems": MAX_TAGS,
            "description": "Repeated, or separated by commas.",
        },
    ),
    "cid": FormField(
        "declared_cid",
        {
            "type": "string",
            "pattern": CID_PATTERN,
            "description": "Refuse the upload unless the bytes have this CID. "
            "Without `file`: publish the bytes of this CID that the gateway has.",
        },
    ),
    "filename": FormField(
        "filename",
        {"type": "string", "description": "Default: that of the part `file`."},
    ),
}
"""What every upload form has beside the file."""


def describe_publishing(
    fields: Mapping[str, FormField], answer: type[BaseModel]
) -> dict[str, Any]:
    """Return how FastAPI shall describe a route that publishes."""
    properties = {name: field.schema for name, field in fields.items()}
    form = {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            **properties,
            FILE: {
                "type": "string",
                "format": "binary",
                "description": f"May be left out if `{CID_FIELD}` names it.",
            },
        },
    }
    return {
        "status_code": 201,
        "responses": {
            200: {
                "model": answer,
                "description": "The latest version has this content already.",
                **with_headers("Location"),
            },
            201: with_headers("Location"),
            **describe(*_ERRORS),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": form}},
            }
        },
    }


async def receive_and_publish(
    request: Request,
    response: Response,
    gateway: Gateway,
    service: ArtifactService,
    principal: Principal,
    fields: Mapping[str, FormField],
) -> Published:
    """Receive the request's form, publish its file, and set the answer's head.

    What the fields before the file say is checked before the file is received. A form
    without a file publishes content that the gateway has.

    Args:
        request: Its body must not have been read.
        response: Gets its status and ``Location``.
        gateway: Whose spool and limits to use.
        service: The collection to publish in.
        principal: Who publishes.
        fields: What the form may have beside the file, by name.

    Raises:
        VisionO3Error: As ``receive_form``, ``Submission`` and
            ``ArtifactService.publish`` say; ``ContentNeededError`` if there is no file
            and the gateway does not have it; ``PermissionDeniedError`` if the principal
            may not publish to the line.
    """
    collection = service.collection.name
    submit = partial(_submission, fields, collection, principal, gateway.settings)

    def check(so_far: Fields, filename: str | None) -> None:
        if "name" in so_far:
            submit(so_far, filename)

    async with AsyncExitStack() as received:
        with gateway.watcher.step(Step.RECEIVE):
            form = await received.enter_async_context(
                receive_form(request, gateway.spool, gateway.form_limits, check)
            )
        submission = submit(form.fields, form.filename)
        if form.spooled is None:
            published = await _publish_known(gateway, service, principal, submission)
        else:
            published = await anyio.to_thread.run_sync(
                service.publish, submission, form.spooled, limiter=gateway.publishing
            )
    if not published.created:
        response.status_code = 200
    response.headers["Location"] = path_of(published.version)
    return published


async def _publish_known(
    gateway: Gateway,
    service: ArtifactService,
    principal: Principal,
    submission: Submission,
) -> Published:
    """Publish content that the gateway has: uploaded in parts, or stored already."""
    cid = submission.declared_cid
    if cid is None:
        raise InputError("The form has neither a file nor the CID of one.")

    # Naming a CID proves nothing: who may not read learns nothing by it.
    reading = f"{_kind(service.collection.name)}:read"
    may_read = principal.has_any(reading)

    def reads(collection: str, line: str) -> bool:
        return principal.may(f"{_kind(collection)}:read", line)

    def publish_partial() -> Published | None:
        # Told before the bytes are asked for: who has a bad link sent nothing in vain.
        service.check_may_publish(submission, reads)
        latest = None
        if principal.may(reading, submission.name):
            latest = service.find_latest(submission.name, cid)
        if latest is not None:
            with suppress(errors.NotFoundError, errors.UploadInProgressError):
                gateway.partial_uploads.forget(principal.id, cid)
            return Published(latest, created=False)
        with gateway.partial_uploads.complete(principal.id, cid) as spooled:
            return None if spooled is None else service.publish(submission, spooled)

    published = await anyio.to_thread.run_sync(
        publish_partial, limiter=gateway.publishing
    )
    if published is None and may_read:
        async with gateway.copying:
            lines = principal.lines(reading)
            published = await _publish_stored(gateway, service, submission, cid, lines)
    if published is None:
        raise errors.ContentNeededError(
            f"The gateway does not have {cid}. Send the bytes first, in parts (PUT "
            f"/uploads/{cid}), or with this form as the part {FILE!r}.",
            cid=str(cid),
        )
    return published


def _kind(collection: str) -> str:
    """Return what scopes call the members of a collection."""
    return collection.removesuffix("s")


async def _publish_stored(
    gateway: Gateway,
    service: ArtifactService,
    submission: Submission,
    cid: CID,
    lines: frozenset[str] | None,
) -> Published | None:
    """Publish content of another version of the collection, read and verified anew.

    If lines are named, only of a version of these.
    """
    try:
        version = await anyio.to_thread.run_sync(service.by_cid, cid, lines)
    except errors.NotFoundError:
        return None
    if version.is_purged:
        return None
    async with gateway.spool.open(version.file_size) as writer:
        try:
            async with aclosing(
                service.stream(version, 0, version.file_size)
            ) as pieces:
                async for piece in pieces:
                    await writer.write(piece)
        except (errors.IntegrityError, errors.ObjectNotFoundError):
            return None  # sent again, it is stored anew
        spooled = await writer.finish()
        return await anyio.to_thread.run_sync(
            service.publish, submission, spooled, limiter=gateway.publishing
        )


def _submission(
    known: Mapping[str, FormField],
    collection: str,
    principal: Principal,
    settings: Settings,
    fields: Fields,
    filename: str | None,
) -> Submission:
    """Return what the form says, once it is clear that the principal may say it.

    Raises:
        InputError: A field is unknown, given twice, or not acceptable.
        PermissionDeniedError: Not to this line.
    """
    values: dict[str, Any] = {}
    for name, given in fields.items():
        if name not in known:
            raise InputError(
                f"There is no field {name[:64]!r}. "
                f"The fields are: {', '.join([*known, FILE])}.",
            )
        if name == "tags":
            values["tags"] = split_tags(given)
            continue
        if len(given) > 1:
            raise InputError(f"The field {name!r} is given more than once.")
        if given[0] or name == "name":  # an empty field is one that was left out
            values[known[name].fills] = given[0]
    if "name" not in values:
        raise InputError("The form has no field 'name': what to publish the file as.")
    if "declared_cid" in values:
        values["declared_cid"] = CID.parse(values["declared_cid"])
    values.setdefault("filename", filename)
    submission = Submission(
        publisher=principal.id,
        address=principal.address,
        request_id=principal.request_id,
        is_admin=ADMIN in principal.scopes,
        max_versions=_own(principal.max_versions, settings.max_versions_per_user),
        max_bytes=_own(principal.max_bytes, settings.max_bytes_per_user),
        **values,
    )
    scope = f"{_kind(collection)}:write"
    principal.require(scope, submission.name)
    owner_only = settings.publish_to == "own" and not principal.owns_all(
        scope, submission.name
    )
    return replace(submission, owner_only=owner_only)


def _own(quota: int | None, common: int) -> int:
    """Return a user's own quota, if they have one, else that of all."""
    return common if quota is None else quota
