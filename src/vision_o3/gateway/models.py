"""The routes of models: publish and list; reading is shared (``retrieval.py``)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from vision_o3 import errors
from vision_o3.db.queries import LineFilters
from vision_o3.gateway.deps import GatewayDep, MayReadModels, ModelReader, ModelWriter
from vision_o3.gateway.pages import link_header
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import (
    READ_ERRORS,
    Shape,
    add_retrieval_routes,
    links_of,
)
from vision_o3.gateway.uploads import receive_and_publish
from vision_o3.registry.values import Version
from vision_o3.schemas import models as wire

_FIELDS = {
    "name": "name",
    "framework": "framework",
    "model_type": "model_type",
    "file_format": "file_format",
    "description": "description",
    "tags": "tags",
    "cid": "declared_cid",
}
_FORM = {
    "type": "object",
    "required": ["name", "file"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "examples": ["yolov11-nano"]},
        "framework": {"type": "string", "examples": ["onnx"]},
        "model_type": {"type": "string", "examples": ["detection"]},
        "file_format": {
            "type": "string",
            "enum": ["pt", "onnx", "tflite", "h5"],
            "description": "Default: by the file's extension.",
        },
        "description": {"type": "string"},
        "tags": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Repeated, or separated by commas.",
        },
        "cid": {
            "type": "string",
            "description": "Refuse the upload unless the bytes have this CID.",
        },
        "file": {"type": "string", "format": "binary"},
    },
}


def _described(version: Version) -> dict[str, Any]:
    return {
        "id": version.id,
        "name": version.name,
        "version": version.version,
        "cid": str(version.cid),
        "framework": version.framework or "",
        "model_type": version.model_type or "",
        "file_format": version.file_format,
        "file_size": version.file_size,
        "description": version.description,
        "tags": list(version.tags),
        "owner_id": version.owner_id,
        "created_at": version.created_at,
        "facts": version.facts,
        "links": links_of(version),
    }


def _read(version: Version) -> wire.ModelVersionRead:
    return wire.ModelVersionRead(**_described(version))


_SHAPE = Shape(
    collection="models",
    reader=MayReadModels,
    service=lambda gateway: gateway.models,
    read=wire.ModelVersionRead,
    page=wire.ModelPage,
    describe=_read,
)

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    status_code=201,
    operation_id="models_publish",
    responses={
        200: {
            "model": wire.ModelPublished,
            "description": "The latest version has this content already.",
        },
        **describe(
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
            errors.TransientStorageError,
            errors.DatabaseUnavailableError,
            errors.StorageFullError,
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FORM}},
        }
    },
)
async def publish(
    request: Request, response: Response, principal: ModelWriter, gateway: GatewayDep
) -> wire.ModelPublished:
    """Publish a file as the next version of a model.

    Fields may come in any order; with the file last, mistakes in the others are told
    before it is received. If the latest version has this content already, it is
    answered with status 200 and nothing is stored.
    """
    published = await receive_and_publish(
        request, gateway, gateway.models, principal, _FIELDS
    )
    answer = wire.ModelPublished(
        **_described(published.version), created=published.created
    )
    if not published.created:
        response.status_code = 200
    response.headers["Location"] = answer.links.self
    return answer


@router.get(
    "",
    operation_id="models_list",
    response_model=wire.ModelPage,
    responses=describe(*READ_ERRORS),
)
def list_models(
    query: Annotated[wire.ModelQuery, Query()],
    request: Request,
    response: Response,
    _: ModelReader,
    gateway: GatewayDep,
) -> object:
    """Return the latest version of each model that passes all filters."""
    filters = LineFilters(
        framework=query.framework,
        model_type=query.model_type,
        file_format=query.format,
        tags=query.wanted_tags(),
        owner=query.owner,
        q=query.q,
    )
    page = gateway.models.list(
        filters, sort=query.sort, page=query.page, page_size=query.page_size
    )
    response.headers["Link"] = link_header(request, page)
    return _SHAPE.describe_page(page)


add_retrieval_routes(router, _SHAPE)
