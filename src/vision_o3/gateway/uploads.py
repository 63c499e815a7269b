"""Publishing over HTTP: a form becomes a submission and a spooled file."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.errors import InputError
from vision_o3.gateway.forms import CID_FIELD, FILE, receive_form
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import path_of
from vision_o3.registry.values import Published, Submission
from vision_o3.schemas.versions import split_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from vision_o3.gateway.auth import Principal
    from vision_o3.gateway.deps import Gateway
    from vision_o3.gateway.forms import Fields
    from vision_o3.registry.services import ArtifactService


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
    errors.UploadInProgressError,
    errors.ContentNeededError,
    errors.TransientStorageError,
    errors.DatabaseUnavailableError,
    errors.GatewayBusyError,
    errors.StorageFullError,
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


COMMON_FIELDS = {
    "name": FormField("name", {"type": "string", "examples": ["yolov11-nano"]}),
    "description": FormField("description", {"type": "string"}),
    "tags": FormField(
        "tags",
        {
            "type": "array",
            "items": {"type": "string"},
            "description": "Repeated, or separated by commas.",
        },
    ),
    "cid": FormField(
        "declared_cid",
        {
            "type": "string",
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
        "anyOf": [{"required": [FILE]}, {"required": [CID_FIELD]}],
        "additionalProperties": False,
        "properties": {**properties, FILE: {"type": "string", "format": "binary"}},
    }
    return {
        "status_code": 201,
        "responses": {
            200: {
                "model": answer,
                "description": "The latest version has this content already.",
            },
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
            and the gateway does not have it.
    """
    submit = partial(_submission, fields, principal.id)

    def check(so_far: Fields, filename: str | None) -> None:
        if "name" in so_far:
            submit(so_far, filename)

    async with receive_form(request, gateway.spool, gateway.form_limits, check) as form:
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
    may_read = f"{service.collection.name.removesuffix('s')}:read" in principal.scopes

    def publish_partial() -> Published | None:
        latest = service.find_latest(submission.name, cid) if may_read else None
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
            published = await _publish_stored(gateway, service, submission, cid)
    if published is None:
        raise errors.ContentNeededError(
            f"The gateway does not have {cid}. Send the bytes first, in parts (PUT "
            f"/uploads/{cid}), or with this form as the part {FILE!r}.",
            cid=str(cid),
        )
    return published


async def _publish_stored(
    gateway: Gateway, service: ArtifactService, submission: Submission, cid: CID
) -> Published | None:
    """Publish content of another version of the collection, read and verified anew."""
    try:
        version = await anyio.to_thread.run_sync(service.by_cid, cid)
    except errors.NotFoundError:
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
    publisher: str,
    fields: Fields,
    filename: str | None,
) -> Submission:
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
    return Submission(publisher=publisher, **values)
