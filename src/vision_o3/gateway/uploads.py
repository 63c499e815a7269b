"""Publishing over HTTP: a form becomes a submission and a spooled file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from vision_o3.content.cid import CID
from vision_o3.errors import InputError
from vision_o3.gateway.forms import FILE, receive_form
from vision_o3.registry.values import Published, Submission
from vision_o3.schemas.versions import split_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from vision_o3.gateway.auth import Principal
    from vision_o3.gateway.deps import Gateway
    from vision_o3.gateway.forms import Fields
    from vision_o3.registry.services import ArtifactService


async def receive_and_publish(
    request: Request,
    gateway: Gateway,
    service: ArtifactService,
    principal: Principal,
    names: Mapping[str, str],
) -> Published:
    """Receive the request's form and publish its file.

    What the fields before the file say is checked before the file is received.

    Args:
        request: Its body must not have been read.
        gateway: Whose spool and limits to use.
        service: The collection to publish in.
        principal: Who publishes.
        names: The form's fields, each with the ``Submission`` field that it fills.

    Raises:
        VisionO3Error: As ``receive_form``, ``Submission`` and
            ``ArtifactService.publish`` say.
    """
    submit = partial(_submission, names, principal.id)

    def check(fields: Fields, filename: str | None) -> None:
        if "name" in fields:
            submit(fields, filename)

    async with receive_form(request, gateway.spool, gateway.form_limits, check) as form:
        submission = submit(form.fields, form.filename)
        return await anyio.to_thread.run_sync(
            service.publish, submission, form.spooled, limiter=gateway.publishing
        )


def _submission(
    names: Mapping[str, str], publisher: str, fields: Fields, filename: str | None
) -> Submission:
    values: dict[str, Any] = {}
    for name, given in fields.items():
        if name not in names:
            raise InputError(
                f"There is no field {name[:64]!r}. "
                f"The fields are: {', '.join([*names, FILE])}.",
            )
        if name == "tags":
            values["tags"] = split_tags(given)
            continue
        if len(given) > 1:
            raise InputError(f"The field {name!r} is given more than once.")
        if given[0] or name == "name":  # an empty field is one that was left out
            values[names[name]] = given[0]
    if "name" not in values:
        raise InputError("The form has no field 'name': what to publish the file as.")
    if "declared_cid" in values:
        values["declared_cid"] = CID.parse(values["declared_cid"])
    return Submission(publisher=publisher, filename=filename, **values)
