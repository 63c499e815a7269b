"""The routes of datasets: publish and list.

Reading is shared (``retrieval.py``); that of files is in ``dataset_files.py``.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from vision_o3.db.queries import LineFilters
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.dataset_files import add_file_routes
from vision_o3.gateway.deps import (
    GatewayDep,
    MayReadDatasets,
    MayWriteDatasets,
    ReadsSomeDatasets,
    SomeDatasetReader,
    SomeDatasetWriter,
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
    FormField,
    describe_publishing,
    receive_and_publish,
)
from vision_o3.gateway.withdrawals import add_withdrawal_routes
from vision_o3.registry.values import Version
from vision_o3.schemas import datasets as wire

_FIELDS = {
    **COMMON_FIELDS,
    "format": FormField(
        "file_format",
        {
            "type": "string",
            "enum": ["zip", "tar.gz", "json", "xml"],
            "description": "Default: by the file's extension.",
        },
    ),
}


def _read(version: Version) -> wire.DatasetVersionRead:
    return wire.DatasetVersionRead(
        **described(version),
        format=version.file_format,
        manifest_cid=version.manifest_cid and str(version.manifest_cid),
    )


_SHAPE = Shape(
    collection="datasets",
    scope="dataset:read",
    reader=MayReadDatasets,
    reader_of_some=ReadsSomeDatasets,
    writer=MayWriteDatasets,
    service=lambda gateway: gateway.datasets,
    read=wire.DatasetVersionRead,
    page=wire.DatasetPage,
    describe=_read,
)

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post(
    "",
    operation_id="datasets_publish",
    dependencies=[Uploading],
    **describe_publishing(_FIELDS, wire.DatasetPublished),
)
async def publish(
    request: Request,
    response: Response,
    principal: SomeDatasetWriter,
    gateway: GatewayDep,
) -> wire.DatasetPublished:
    """Publish a file as the next version of a dataset.

    Of an archive every file is read, named by its CID and listed in the manifest.
    Fields may come in any order; with the file last, mistakes in the others are told
    before it is received. If the latest version has this content already, it is
    answered with status 200 and nothing is stored. With `cid` and no file, content is
    published that was uploaded in parts (`PUT /uploads/{cid}`), or that another version
    has.
    """
    published = await receive_and_publish(
        request, response, gateway, gateway.datasets, principal, _FIELDS
    )
    return wire.DatasetPublished(
        **dict(_read(published.version)), created=published.created
    )


@router.get(
    "",
    operation_id="datasets_list",
    response_model=wire.DatasetPage,
    responses={200: with_headers("Link"), **describe(*READ_ERRORS)},
)
def list_datasets(
    query: Annotated[wire.DatasetQuery, Query()],
    request: Request,
    response: Response,
    principal: SomeDatasetReader,
    gateway: GatewayDep,
) -> object:
    """Return the latest version of each dataset that passes all filters."""
    filters = LineFilters(
        file_format=query.format,
        tags=query.wanted_tags(),
        owner=query.owner,
        q=query.q,
        annotations=query.annotations,
        has_class=query.has_class,
    )
    return list_page(_SHAPE, query, filters, request, response, principal, gateway)


add_retrieval_routes(router, _SHAPE)
add_withdrawal_routes(router, _SHAPE)
add_file_routes(router)
