"""The routes of what is in a dataset: manifest, single files, what changed."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from vision_o3 import errors
from vision_o3.content.manifest import Difference, FileEntry
from vision_o3.gateway.contract import CONTENT_HEADERS, with_headers
from vision_o3.gateway.deps import (
    Downloading,
    Gateway,
    GatewayDep,
    MayReadDatasets,
)
from vision_o3.gateway.download import (
    IMMUTABLE,
    Content,
    Download,
    content_headers,
    names,
    plan_reply,
)
from vision_o3.gateway.pages import link_header
from vision_o3.gateway.problems import describe
from vision_o3.gateway.retrieval import (
    BYTE_ERRORS,
    READ_ERRORS,
    STORE_ERRORS,
    WITHDRAWN_ERRORS,
    AllowBlocked,
    NamePath,
    VersionPath,
    describe_bytes,
)
from vision_o3.naming import parse_version
from vision_o3.registry.members import Member
from vision_o3.registry.values import Page, Version, VersionDifference
from vision_o3.registry.withdrawn import require_served
from vision_o3.schemas import datasets as wire

_LINE_ERRORS = (errors.InvalidNameError, errors.InvalidVersionError)
ANY_MEDIA = ("application/octet-stream", "*/*")
"""By a file's name; of an unknown kind, the first."""
FilePath = Annotated[
    str,
    Path(description="As the manifest has it.", examples=["images/0001.jpg"]),
]


def add_file_routes(router: APIRouter) -> None:
    """Add the routes to the router of datasets."""
    router.add_api_route(
        "/{name}/versions/{version}/manifest",
        manifest,
        methods=["GET"],
        dependencies=[MayReadDatasets],
        response_model=wire.ManifestRead | wire.FilePage,
        responses={
            200: with_headers(*CONTENT_HEADERS, "Link"),
            304: {
                "description": "What the caller has (If-None-Match) is current.",
                **with_headers(*CONTENT_HEADERS),
            },
            **describe(*READ_ERRORS, *_LINE_ERRORS, *WITHDRAWN_ERRORS, *STORE_ERRORS),
        },
        operation_id="datasets_manifest",
    )
    for method in ("GET", "HEAD"):
        router.add_api_route(
            "/{name}/versions/{version}/files/{path:path}",
            file,
            methods=[method],
            dependencies=[MayReadDatasets, Downloading],
            response_class=Response,
            responses={
                **describe_bytes(ANY_MEDIA, method, ranges=True),
                **describe(
                    *READ_ERRORS, *_LINE_ERRORS, errors.InvalidPathError, *BYTE_ERRORS
                ),
            },
            operation_id=f"datasets_file_{method.lower()}",
        )
    router.add_api_route(
        "/{name}/diff",
        diff,
        methods=["GET"],
        dependencies=[MayReadDatasets],
        response_model=wire.DiffRead,
        responses={
            200: with_headers("Link"),
            **describe(*READ_ERRORS, *_LINE_ERRORS, *WITHDRAWN_ERRORS, *STORE_ERRORS),
        },
        operation_id="datasets_diff",
    )


def manifest(
    name: NamePath,
    version: VersionPath,
    query: Annotated[wire.ManifestQuery, Query()],
    request: Request,
    gateway: GatewayDep,
) -> Response:
    """Return the list of an archive's files, each with its CID.

    Whole, it is the canonical document, whose bytes `manifest_cid` names. With `page`
    or `page_size` it comes page by page, for people.
    """
    found = _served(gateway, name, version, allow_blocked=query.allow_blocked)
    if query.page is None and query.page_size is None:
        return _whole_manifest(gateway, found, request)
    page = gateway.datasets.files(
        found, page=query.page or 1, page_size=query.page_size or 200
    )
    document = {
        "items": [_described(entry) for entry in page.items],
        "page": page.page,
        "page_size": page.page_size,
        "total": page.total,
    }
    return JSONResponse(document, headers={"Link": link_header(request, page)})


async def file(
    name: NamePath,
    version: VersionPath,
    path: FilePath,
    request: Request,
    gateway: GatewayDep,
    *,
    allow_blocked: AllowBlocked = False,
) -> Response:
    """Return one file of an archive, checked against the CID that its manifest names.

    Only what holds the file is read from the store.
    """

    def find() -> Member:
        found = _served(gateway, name, version, allow_blocked=allow_blocked)
        return gateway.datasets.find_file(found, path)

    member = await run_in_threadpool(find)
    entry = member.entry
    content = Content(
        member.version,
        entry.cid,
        entry.size,
        entry.path.rpartition("/")[2],
        entry.media_type,
    )
    return Download(
        content,
        plan_reply(content, request.method, request.headers, IMMUTABLE),
        partial(gateway.datasets.stream_file, member),
        stall_timeout_s=gateway.settings.stall_timeout_s,
    )


def diff(
    name: NamePath,
    query: Annotated[wire.DiffQuery, Query()],
    request: Request,
    response: Response,
    gateway: GatewayDep,
) -> wire.DiffRead:
    """Return what changed from one version to another.

    Files with another path and the same content are renamed.
    """
    difference = gateway.datasets.compare(
        _served(gateway, name, query.before, allow_blocked=query.allow_blocked),
        _served(gateway, name, query.after, allow_blocked=query.allow_blocked),
    )
    files = None
    if difference.files is not None:
        files, page = _file_changes(difference.files, query)
        response.headers["Link"] = link_header(request, page)
    return wire.DiffRead(
        name=name,
        before=_compared(difference.before),
        after=_compared(difference.after),
        files=files,
        annotations=_annotation_changes(difference),
    )


def _served(
    gateway: Gateway, name: str, version: str, *, allow_blocked: bool
) -> Version:
    """Return a dataset's version, whose files may be handed out."""
    found = gateway.datasets.version(name, parse_version(version))
    return require_served(found, allow_blocked=allow_blocked)


def _whole_manifest(gateway: Gateway, version: Version, request: Request) -> Response:
    content = gateway.datasets.manifest(version)
    headers = {
        **content_headers(version, str(version.manifest_cid), len(content), IMMUTABLE),
    }
    if names(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


def _described(entry: FileEntry) -> dict[str, object]:
    return {**entry._asdict(), "cid": str(entry.cid)}


def _compared(version: Version) -> wire.ComparedVersion:
    return wire.ComparedVersion(
        version=version.version,
        cid=str(version.cid),
        manifest_cid=version.manifest_cid and str(version.manifest_cid),
    )


def _file_changes(
    difference: Difference, query: wire.DiffQuery
) -> tuple[wire.FileChanges, Page[wire.FileChange]]:
    changes = [
        *(_change("added", entry) for entry in difference.added),
        *(_change("removed", entry) for entry in difference.removed),
        *(_change("changed", new, old) for old, new in difference.changed),
        *(_change("renamed", new, old) for old, new in difference.renamed),
    ]
    start = (query.page - 1) * query.page_size
    page = Page(
        tuple(changes[start : start + query.page_size]),
        query.page,
        query.page_size,
        len(changes),
    )
    described = wire.FileChanges(
        added=len(difference.added),
        removed=len(difference.removed),
        changed=len(difference.changed),
        renamed=len(difference.renamed),
        unchanged=difference.unchanged,
        items=list(page.items),
        page=page.page,
        page_size=page.page_size,
        total=page.total,
    )
    return described, page


def _change(
    kind: Literal["added", "removed", "changed", "renamed"],
    entry: FileEntry,
    old: FileEntry | None = None,
) -> wire.FileChange:
    change = wire.FileChange(
        change=kind, path=entry.path, cid=str(entry.cid), size=entry.size
    )
    if old is None:
        return change
    if kind == "renamed":
        return change.model_copy(update={"old_path": old.path})
    return change.model_copy(update={"old_cid": str(old.cid), "old_size": old.size})


def _annotation_changes(difference: VersionDifference) -> wire.AnnotationChanges | None:
    before = difference.before.facts.get("annotations")
    after = difference.after.facts.get("annotations")
    if before is None or after is None:
        return None

    def count(name: str) -> wire.CountChange:
        return wire.CountChange(before=before[name], after=after[name])

    classes = {*before["classes"], *after["classes"]}
    for side in (before, after):
        if len(side["classes"]) < side["class_count"]:
            classes &= set(side["classes"])  # of the others the count is not known
    return wire.AnnotationChanges(
        images=count("images"),
        annotations=count("annotations"),
        boxes=count("boxes"),
        classes={
            name: wire.CountChange(before=old, after=new)
            for name in sorted(classes)
            if (old := before["classes"].get(name, 0))
            != (new := after["classes"].get(name, 0))
        },
    )
