"""The routes of uploads in parts: begin, ask, send, forget.

What is complete is published by ``POST /models`` or ``/datasets`` with its CID.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.content.sidecar import max_sidecar_size
from vision_o3.errors import InputError, InvalidRangeError, LimitExceededError
from vision_o3.gateway.bodies import Incoming
from vision_o3.gateway.deps import GatewayDep, Uploader, Uploading
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import CIDPath
from vision_o3.registry.partial_uploads import PartialUpload
from vision_o3.schemas.uploads import UploadRead

_ERRORS = (
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.InputError,
    errors.InvalidCIDError,
    errors.RateLimitedError,
    errors.TooManyTransfersError,
    errors.DatabaseUnavailableError,
    errors.StorageError,
)
_RECEIVING = (
    errors.CIDMismatchError,
    errors.IncompleteUploadError,
    errors.StorageFullError,
    errors.GatewayBusyError,
)
_SENT = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    },
}
_SIDECAR = {
    "required": True,
    "content": {
        "application/vnd.ipld.car": {"schema": {"type": "string", "format": "binary"}}
    },
}

router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=[Uploading])


def _read(upload: PartialUpload) -> UploadRead:
    return UploadRead(
        cid=str(upload.cid),
        file_size=upload.file_size,
        received=upload.received,
        missing=list(upload.missing),
        expires_at=upload.expires_at,
    )


@router.put(
    "/{cid}",
    operation_id="uploads_begin",
    status_code=201,
    responses={
        200: {"model": UploadRead, "description": "It was begun before."},
        **describe(
            *_ERRORS, *_RECEIVING, errors.LimitExceededError, errors.QuotaExceededError
        ),
    },
    openapi_extra={"requestBody": _SIDECAR},
)
async def begin(
    cid: CIDPath,
    request: Request,
    response: Response,
    principal: Uploader,
    gateway: GatewayDep,
) -> UploadRead:
    """Begin to upload a file in parts, or go on: say what is missing.

    The body is the file's sidecar, which says what each of its leaves must be. A file
    of one leaf (at most 1 MiB) has none: publish it by a form with the file.
    """
    root = CID.parse(cid)
    sidecar = await _receive_sidecar(request, gateway)
    upload = await anyio.to_thread.run_sync(
        gateway.partial_uploads.begin,
        principal.id,
        root,
        sidecar,
        limiter=gateway.scanning,
    )
    if not upload.created:
        response.status_code = 200
    return _read(upload)


@router.get(
    "/{cid}",
    operation_id="uploads_read",
    responses=describe(*_ERRORS, errors.NotFoundError, errors.InvalidRangeError),
)
async def read(
    cid: CIDPath,
    principal: Uploader,
    gateway: GatewayDep,
    start: Annotated[int, Query(ge=0, description="Look from this byte on.")] = 0,
    end: Annotated[
        int | None, Query(ge=1, description="Look up to this byte; default: the end.")
    ] = None,
) -> UploadRead:
    """Return what of an upload is in, and what is missing.

    What is on disk is hashed for that; with `start` and `end`, which must lie between
    leaves, only there, and `received` and `missing` are of that range.
    """
    find = partial(
        gateway.partial_uploads.find, principal.id, CID.parse(cid), start, end
    )
    return _read(await anyio.to_thread.run_sync(find, limiter=gateway.scanning))


@router.put(
    "/{cid}/parts/{offset}",
    operation_id="uploads_send",
    status_code=204,
    response_class=Response,
    responses=describe(
        *_ERRORS, *_RECEIVING, errors.NotFoundError, errors.InvalidRangeError
    ),
    openapi_extra={"requestBody": _SENT},
)
async def send(
    cid: CIDPath,
    offset: Annotated[
        str,
        Path(
            description="Of the part's first byte.",
            examples=["1048576"],
            json_schema_extra={"pattern": "^(0|[1-9][0-9]{0,17})$"},
        ),
    ],
    request: Request,
    principal: Uploader,
    gateway: GatewayDep,
) -> None:
    """Send a part of any number of whole leaves, from a byte on.

    `offset` is a multiple of 1 MiB, and so is `Content-Length` unless the part ends
    with the file. Each leaf is verified before it is kept. Of a part that breaks off,
    or holds a wrong leaf, the right leaves are kept. Parts may come in any order, at
    the same time, and again.
    """
    root = CID.parse(cid)
    if not (offset.isascii() and offset.isdigit() and len(offset) <= len(str(1 << 63))):
        raise InvalidRangeError(f"{offset[:32]!r} is not where a part can begin.")
    incoming = Incoming(request, gateway.settings.stall_timeout_s)
    size = incoming.announced
    if not size:
        raise InputError("The part does not say its length: send Content-Length.")
    async with gateway.partial_uploads.open_part(
        principal.id, root, int(offset), size
    ) as writer:
        ended = False
        while not ended:
            piece, ended = await incoming.next_piece()
            await writer.write(piece)
        await writer.finish()


@router.delete(
    "/{cid}",
    operation_id="uploads_forget",
    status_code=204,
    response_class=Response,
    responses=describe(*_ERRORS, errors.NotFoundError, errors.UploadInProgressError),
)
def forget(cid: CIDPath, principal: Uploader, gateway: GatewayDep) -> None:
    """Remove what of an upload is in."""
    gateway.partial_uploads.forget(principal.id, CID.parse(cid))


async def _receive_sidecar(request: Request, gateway: GatewayDep) -> bytes:
    largest = min(gateway.settings.max_upload_bytes, UNIXFS_V1_2025.max_size)
    limit = max_sidecar_size(largest)
    incoming = Incoming(request, gateway.settings.stall_timeout_s)
    sidecar = bytearray()
    ended = False
    while not ended:
        piece, ended = await incoming.next_piece()
        sidecar += piece
        if max(len(sidecar), incoming.announced or 0) > limit:
            raise LimitExceededError(
                f"The sidecar is longer than the {limit} bytes that that of the "
                "largest accepted file has (VISION_O3_MAX_UPLOAD_BYTES).",
                limit=limit,
            )
    return bytes(sidecar)
