"""The reading routes that models and datasets have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from vision_o3 import errors
from vision_o3.content.cid import CID
from vision_o3.gateway.contract import CONTENT_HEADERS, with_headers
from vision_o3.gateway.deps import Downloading, Gateway, GatewayDep
from vision_o3.gateway.download import (
    IMMUTABLE,
    LATEST,
    Content,
    Download,
    plan_reply,
)
from vision_o3.gateway.pages import link_header
from vision_o3.gateway.problems import describe
from vision_o3.naming import parse_version
from vision_o3.registry.permissions import Principal
from vision_o3.registry.values import Page, Version
from vision_o3.registry.withdrawn import require_kept, require_served
from vision_o3.schemas.versions import (
    ALLOW_BLOCKED,
    CID_PATTERN,
    NAME_PATTERN,
    VERSION_PATTERN,
    ListQuery,
    PageQuery,
    VersionLinks,
    VersionRead,
    WithdrawalRead,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from fastapi.params import Depends

    from vision_o3.db.queries import LineFilters
    from vision_o3.registry.services import ArtifactService

CAR = "application/vnd.ipld.car; version=1"
_STATES: Mapping[str, Literal["deprecated", "blocked", "purged"]] = {
    "deprecated": "deprecated",
    "blocked": "blocked",
    "purged": "purged",
}

NamePath = Annotated[
    str,
    Path(
        description="The line's name.",
        examples=["yolov11"],
        json_schema_extra={"pattern": NAME_PATTERN},
    ),
]
VersionPath = Annotated[
    str,
    Path(
        description="From 1 up.",
        examples=["1"],
        json_schema_extra={"pattern": VERSION_PATTERN},
    ),
]
CIDPath = Annotated[
    str,
    Path(description="The content's CID.", json_schema_extra={"pattern": CID_PATTERN}),
]

AllowBlocked = Annotated[bool, Query(description=ALLOW_BLOCKED)]

READ_ERRORS = (
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.RateLimitedError,
    errors.InputError,
    errors.NotFoundError,
    errors.DatabaseUnavailableError,
)
_NAME = errors.InvalidNameError
_NUMBER = errors.InvalidVersionError
_CID = errors.InvalidCIDError
WITHDRAWN_ERRORS = (errors.VersionBlockedError, errors.VersionPurgedError)
STORE_ERRORS = (
    errors.IntegrityError,
    errors.DigestMismatchError,
    errors.LengthMismatchError,
    errors.MalformedBlockError,
    errors.MissingBlockError,
    errors.ObjectNotFoundError,
    errors.StorageError,
    errors.TransientStorageError,
)
"""What reading an object may come to."""
BYTE_ERRORS = (errors.TooManyTransfersError, *WITHDRAWN_ERRORS, *STORE_ERRORS)


@dataclass(frozen=True, slots=True)
class Shape:
    """How one collection looks on the wire."""

    collection: str
    scope: str
    """What reading needs."""
    reader: Depends
    """Lets in who may read the line that the path names."""
    reader_of_some: Depends
    """Lets in who may read some lines, for routes that look at which."""
    writer: Depends
    """Lets in who may publish to the line that the path names."""
    service: Callable[[Gateway], ArtifactService]
    read: type[VersionRead]
    page: type[BaseModel]
    describe: Callable[[Version], VersionRead]

    def describe_page(self, page: Page[Version]) -> BaseModel:
        """Return a page's document."""
        return self.page(
            items=[self.describe(item) for item in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
        )


def described(version: Version) -> dict[str, Any]:
    """Return what both collections say of a version, under the wire's names."""
    return {
        "id": version.id,
        "name": version.name,
        "version": version.version,
        "cid": str(version.cid),
        "file_size": version.file_size,
        "description": version.description,
        "tags": list(version.tags),
        "owner_id": version.owner_id,
        "created_at": version.created_at,
        "withdrawal": _withdrawal_of(version),
        "facts": version.facts,
        "links": _links_of(version),
    }


def _withdrawal_of(version: Version) -> WithdrawalRead | None:
    withdrawal = version.withdrawal
    if withdrawal is None:
        return None
    state = _STATES[withdrawal.state]
    return WithdrawalRead(state=state, reason=withdrawal.reason, at=withdrawal.at)


def path_of(version: Version) -> str:
    """Return where a version is, on this gateway."""
    return f"/{version.collection}/{version.name}/versions/{version.version}"


def list_page(  # noqa: PLR0917 - a question, its answer, and who asks
    shape: Shape,
    query: ListQuery,
    filters: LineFilters,
    request: Request,
    response: Response,
    principal: Principal,
    gateway: Gateway,
) -> BaseModel:
    """Return a page of the latest versions that pass all filters; link to others.

    Only of lines that the principal may read.
    """
    filters = replace(filters, lines=principal.lines(shape.scope))
    page = shape.service(gateway).list(
        filters, sort=query.sort, page=query.page, page_size=query.page_size
    )
    response.headers["Link"] = link_header(request, page)
    return shape.describe_page(page)


def _links_of(version: Version) -> VersionLinks:
    path = path_of(version)
    has_dag = version.sidecar_key is not None
    return VersionLinks(
        self=path,
        download=f"{path}/download",
        dag=f"/{version.collection}/cid/{version.cid}/dag" if has_dag else None,
        manifest=f"{path}/manifest" if version.manifest_cid is not None else None,
    )


def add_retrieval_routes(router: APIRouter, shape: Shape) -> None:
    """Add the routes that find and hand out what the collection has."""
    _add_metadata_routes(router, shape)
    _add_byte_routes(router, shape)


async def _resolved(
    kept: Version | None, ask: Callable[..., Version], *arguments: object
) -> Version:
    """Return the answer that is kept, or go to a thread and ask the database."""
    if kept is not None:
        return kept
    return await run_in_threadpool(ask, *arguments)


async def find_by_cid(
    service: ArtifactService, cid: CID, lines: frozenset[str] | None
) -> Version:
    """Return the newest version of a content, of these lines if any are named."""
    if lines is not None:
        return await run_in_threadpool(service.by_cid, cid, lines)
    return await _resolved(service.kept(cid=cid), service.by_cid, cid)


def _add_metadata_routes(router: APIRouter, shape: Shape) -> None:
    async def by_cid(
        cid: CIDPath,
        gateway: GatewayDep,
        principal: Principal = shape.reader_of_some,  # type: ignore[assignment]  # as FastAPI has it
        *,
        allow_blocked: AllowBlocked = False,
    ) -> VersionRead:
        """Return the newest version that has this content, and may be used."""
        service, lines = shape.service(gateway), principal.lines(shape.scope)
        found = await find_by_cid(service, CID.parse(cid), lines)
        return shape.describe(require_served(found, allow_blocked=allow_blocked))

    async def latest(name: NamePath, gateway: GatewayDep) -> VersionRead:
        """Return the latest version that is not blocked."""
        service = shape.service(gateway)
        found = await _resolved(service.kept(name), service.latest, name)
        return shape.describe(found)

    def history(
        name: NamePath,
        query: Annotated[PageQuery, Query()],
        request: Request,
        response: Response,
        gateway: GatewayDep,
    ) -> BaseModel:
        """Return all versions of a line, newest first, page by page."""
        page = shape.service(gateway).history(
            name, page=query.page, page_size=query.page_size
        )
        response.headers["Link"] = link_header(request, page)
        return shape.describe_page(page)

    async def one(
        name: NamePath, version: VersionPath, gateway: GatewayDep
    ) -> VersionRead:
        """Return one version, blocked or not."""
        service, number = shape.service(gateway), parse_version(version)
        found = await _resolved(
            service.kept(name, number), service.version, name, number
        )
        return shape.describe(require_kept(found))

    for path, handler, answer, own_errors in (
        ("/cid/{cid}", by_cid, shape.read, (_CID, *WITHDRAWN_ERRORS)),
        ("/{name}", latest, shape.read, (_NAME, *WITHDRAWN_ERRORS)),
        ("/{name}/versions", history, shape.page, (_NAME,)),
        (
            "/{name}/versions/{version}",
            one,
            shape.read,
            (_NAME, _NUMBER, errors.VersionPurgedError),
        ),
    ):
        router.add_api_route(
            path,
            handler,
            methods=["GET"],
            dependencies=[] if handler is by_cid else [shape.reader],
            response_model=answer,
            responses={
                **({200: with_headers("Link")} if handler is history else {}),
                **describe(*READ_ERRORS, *own_errors),
            },
            operation_id=f"{shape.collection}_{handler.__name__}",
        )


def _add_byte_routes(router: APIRouter, shape: Shape) -> None:
    async def dag(
        cid: CIDPath,
        request: Request,
        gateway: GatewayDep,
        principal: Principal = shape.reader_of_some,  # type: ignore[assignment]  # as above
        *,
        allow_blocked: AllowBlocked = False,
    ) -> Response:
        """Return the sidecar: the DAG's inner nodes, as a CARv1.

        With it, any byte range of the file is verified against the CID.
        """
        service, lines = shape.service(gateway), principal.lines(shape.scope)
        found = await find_by_cid(service, CID.parse(cid), lines)
        require_served(found, allow_blocked=allow_blocked)
        return _sidecar_answer(found, await service.read_sidecar(found), request)

    async def download_cid(
        cid: CIDPath,
        request: Request,
        gateway: GatewayDep,
        principal: Principal = shape.reader_of_some,  # type: ignore[assignment]  # as above
        *,
        allow_blocked: AllowBlocked = False,
    ) -> Response:
        """Return the content's bytes."""
        service, lines = shape.service(gateway), principal.lines(shape.scope)
        found = await find_by_cid(service, CID.parse(cid), lines)
        require_served(found, allow_blocked=allow_blocked)
        return await _hand_out(request, gateway, service, found, IMMUTABLE)

    async def download(
        name: NamePath,
        request: Request,
        gateway: GatewayDep,
        version: Annotated[
            Annotated[str, Field(json_schema_extra={"pattern": VERSION_PATTERN})]
            | None,
            Query(description="Default: latest."),
        ] = None,
        *,
        allow_blocked: AllowBlocked = False,
    ) -> Response:
        """Return the bytes of the latest version, or of the one asked for."""
        if version is not None:
            return await download_version(
                name, version, request, gateway, allow_blocked=allow_blocked
            )
        service = shape.service(gateway)
        found = await _resolved(service.kept(name), service.latest, name)
        return await _hand_out(request, gateway, service, found, LATEST)

    async def download_version(
        name: NamePath,
        version: VersionPath,
        request: Request,
        gateway: GatewayDep,
        *,
        allow_blocked: AllowBlocked = False,
    ) -> Response:
        """Return the bytes of one version."""
        service, number = shape.service(gateway), parse_version(version)
        found = await _resolved(
            service.kept(name, number), service.version, name, number
        )
        require_served(found, allow_blocked=allow_blocked)
        return await _hand_out(request, gateway, service, found, IMMUTABLE)

    bytes_media: Sequence[str] = ("application/octet-stream",)
    for path, handler, media, own_errors in (
        ("/cid/{cid}/dag", dag, (CAR,), (_CID,)),
        ("/cid/{cid}/download", download_cid, bytes_media, (_CID,)),
        ("/{name}/download", download, bytes_media, (_NAME, _NUMBER)),
        (
            "/{name}/versions/{version}/download",
            download_version,
            bytes_media,
            (_NAME, _NUMBER),
        ),
    ):
        for method in ("GET", "HEAD"):
            router.add_api_route(
                path,
                handler,
                methods=[method],
                dependencies=[
                    *([shape.reader] if path.startswith("/{name}") else []),
                    Downloading,
                ],
                response_class=Response,
                responses={
                    **describe_bytes(
                        media,
                        method,
                        ranges=handler is not dag,
                        redirects=handler is not dag,
                    ),
                    **describe(*READ_ERRORS, *own_errors, *BYTE_ERRORS),
                },
                operation_id=f"{shape.collection}_{handler.__name__}_{method.lower()}",
            )


def describe_bytes(
    media: Sequence[str], method: str, *, ranges: bool, redirects: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that answers with bytes."""
    content = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in media
    }
    headers = [*CONTENT_HEADERS, "Content-Disposition"]
    if ranges:
        headers += ["Accept-Ranges", "Repr-Digest"]
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "All of it.",
            "content": content,
            **with_headers(*headers),
        },
        304: {
            "description": "What the caller has (If-None-Match) is current.",
            **with_headers(*headers),
        },
    }
    if method == "HEAD":  # is answered whatever the range, and never elsewhere
        return answers
    if ranges:
        answers[206] = {
            "description": "The range asked for.",
            "content": content,
            **with_headers(*headers, "Content-Range"),
        }
        answers |= describe(errors.InvalidRangeError)
    if redirects:
        answers[307] = {
            "description": "Fetch it from the store, at Location.",
            **with_headers(*CONTENT_HEADERS, "Location"),
        }
    return answers


async def _hand_out(
    request: Request,
    gateway: Gateway,
    service: ArtifactService,
    version: Version,
    cache_control: str,
) -> Response:
    """Answer with a version's bytes, or with where the store serves them."""
    settings = gateway.settings
    content = Content.of(version)
    reply = plan_reply(content, request.method, request.headers, cache_control)
    # A signed URL is for GET only, so HEAD is answered here.
    if settings.direct_downloads and request.method == "GET" and reply.status < 300:  # noqa: PLR2004 - there are bytes to send
        ttl_s = settings.direct_downloads_ttl_s
        url = await anyio.to_thread.run_sync(
            lambda: service.presigned_url(version, ttl_s=ttl_s)
        )
        if url is not None:
            return RedirectResponse(
                url, 307, headers=content.headers("private, no-store")
            )
    return Download(
        content,
        reply,
        partial(service.stream, version),
        stall_timeout_s=settings.stall_timeout_s,
    )


def _sidecar_answer(
    version: Version, sidecar: bytes | None, request: Request
) -> Response:
    cid = version.cid
    if sidecar is None:
        raise errors.NotFoundError(
            f"{cid} has no sidecar: it names a single leaf, whose bytes verify "
            "themselves. Fetch them and compare their sha-256.",
            cid=str(cid),
        )
    etag = f'"{cid}.car"'
    headers = {
        **Content.of(version).headers(IMMUTABLE),
        "ETag": etag,
        "Content-Disposition": f'attachment; filename="{cid}.car"',
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(sidecar, headers=headers, media_type=CAR)
