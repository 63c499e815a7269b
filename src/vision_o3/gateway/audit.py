"""The routes of the audit trail: listed, exported, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from vision_o3 import errors
from vision_o3.db.audit import Event, Filters
from vision_o3.gateway.contract import with_headers
from vision_o3.gateway.deps import Admin, GatewayDep
from vision_o3.gateway.pages import link_header
from vision_o3.gateway.problems import describe
from vision_o3.registry import audit_trail
from vision_o3.schemas import audit as wire

_ERRORS = (
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.RateLimitedError,
    errors.DatabaseUnavailableError,
)

router = APIRouter(prefix="/admin/audit", tags=["audit"])


class JSONLines(StreamingResponse):
    """JSON documents, each a line."""

    media_type = "application/x-ndjson"


@router.get(
    "",
    operation_id="audit_list",
    responses={
        200: with_headers("Link"),
        **describe(*_ERRORS, errors.InputError),
    },
)
def list_events(
    query: Annotated[wire.AuditQuery, Query()],
    request: Request,
    response: Response,
    _: Admin,
    gateway: GatewayDep,
) -> wire.AuditPage:
    """Return events of the audit trail, newest first."""
    page = audit_trail.list_trail(
        gateway.database,
        filters_of(query),
        page=query.page,
        page_size=query.page_size,
    )
    response.headers["Link"] = link_header(request, page)
    return wire.AuditPage(
        items=[_read(event) for event in page.items],
        page=page.page,
        page_size=page.page_size,
        total=page.total,
    )


@router.get(
    "/export",
    operation_id="audit_export",
    response_class=JSONLines,
    responses=describe(*_ERRORS, errors.InputError),
)
def export_events(
    query: Annotated[wire.AuditFilters, Query()], _: Admin, gateway: GatewayDep
) -> JSONLines:
    """Return all events that pass the filters, a line of JSON each, oldest first.

    Those that are there when it begins, in the order in which this gateway's database
    got them. If the answer breaks off in the middle, the connection is broken too.
    """
    batches = audit_trail.export_trail(gateway.database, filters_of(query))
    first = next(batches, [])  # what fails at once gets an answer that says so
    return JSONLines(_lines(chain([first], batches)))


@router.get("/head", operation_id="audit_head", responses=describe(*_ERRORS))
def head(_: Admin, gateway: GatewayDep) -> wire.AuditHead:
    """Return where the trail ends now; kept elsewhere, it shows what is cut off."""
    found = audit_trail.head_of(gateway.database)
    return wire.AuditHead(
        chain=found.chain, seq=found.seq, hash=found.hash, head=str(found)
    )


def filters_of(query: wire.AuditFilters) -> Filters:
    """Return the filters that a query names."""
    return Filters(
        principal=query.principal,
        action=query.action,
        subject=query.subject,
        since=query.since,
        until=query.until,
    )


def _read(event: Event) -> wire.AuditEvent:
    return wire.AuditEvent(
        chain=event.chain,
        seq=event.seq,
        hash=event.hash,
        at=event.at,
        principal=event.principal,
        action=event.action,
        subject=event.subject,
        detail=event.detail,
        address=event.address,
        request_id=event.request_id,
    )


def _lines(batches: Iterator[list[Event]]) -> Iterator[str]:
    """Yield a batch's lines at a time; Starlette asks for each in a thread."""
    for events in batches:
        documents = map(audit_trail.document_of, events)
        yield "".join(f"{json.dumps(document)}\n" for document in documents)
