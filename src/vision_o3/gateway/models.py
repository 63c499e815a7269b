"""The routes of models: publish and list; reading is shared (``retrieval.py``)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from vision_o3.db.queries import LineFilters
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.deps import (
    GatewayDep,
    MayReadModels,
    MayWriteModels,
    ReadsSomeModels,
    SomeModelReader,
    SomeModelWriter,
    Uploading,
)
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import (
    READ_ERRORS,
    Shape,
    add_retrieval_routes,
    described,
    list_page,
)
from vision_o3.gateway.uploads import (
    COMMON_FIELDS,
    LABEL,
    FormField,
    describe_publishing,
    receive_and_publish,
)
from vision_o3.gateway.withdrawals import add_withdrawal_routes
from vision_o3.registry.values import Version
from vision_o3.schemas import models as wire

_FIELDS = {
    **COMMON_FIELDS,
    "framework": FormField("framework", {**LABEL, "examples": ["onnx"]}),
    "model_type": FormField("model_type", {**LABEL, "examples": ["detection"]}),
    "file_format": FormField(
        "file_format",
        {
            "type": "string",
            "enum": ["pt", "onnx", "tflite", "h5"],
            "description": "Default: by the file's extension.",
        },
    ),
}


def _read(version: Version) -> wire.ModelVersionRead:
    return wire.ModelVersionRead(
        **described(version),
        framework=version.framework or "",
        model_type=version.model_type or "",
        file_format=version.file_format,
    )


_SHAPE = Shape(
    collection="models",
    scope="model:read",
    reader=MayReadModels,
    reader_of_some=ReadsSomeModels,
    writer=MayWriteModels,
    service=lambda gateway: gateway.models,
    read=wire.ModelVersionRead,
    page=wire.ModelPage,
    describe=_read,
)

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    operation_id="models_publish",
    dependencies=[Uploading],
    **describe_publishing(_FIELDS, wire.ModelPublished),
)
async def publish(
    request: Request,
    response: Response,
    principal: SomeModelWriter,
    gateway: GatewayDep,
) -> wire.ModelPublished:
    """Publish a file as the next version of a model.

    Fields may come in any order; with the file last, mistakes in the others are told
    before it is received. If the latest version has this content already, it is
    answered with status 200 and nothing is stored. With `cid` and no file, content is
    published that was uploaded in parts (`PUT /uploads/{cid}`), or that another version
    has.
    """
    published = await receive_and_publish(
        request, response, gateway, gateway.models, principal, _FIELDS
    )
    return wire.ModelPublished(
        **dict(_read(published.version)), created=published.created
    )


@router.get(
    "",
    operation_id="models_list",
    response_model=wire.ModelPage,
    responses={200: with_headers("Link"), **describe(*READ_ERRORS)},
)
def list_models(
    query: Annotated[wire.ModelQuery, Query()],
    request: Request,
    response: Response,
    principal: SomeModelReader,
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
        quantized=query.quantized,
        safety=query.safety,
    )
    return list_page(_SHAPE, query, filters, request, response, principal, gateway)


add_retrieval_routes(router, _SHAPE)
add_withdrawal_routes(router, _SHAPE)
