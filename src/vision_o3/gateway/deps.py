"""Every dependency of a route, as an alias; nothing else calls ``Depends``."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Request, Security, params
from fastapi.openapi.models import (
    OAuthFlowClientCredentials,
    OAuthFlowPassword,
    OAuthFlows,
)
from fastapi.security import HTTPBearer, OAuth2, SecurityScopes

from vision_o3.db.engine import Database
from vision_o3.errors import UnauthenticatedError
from vision_o3.gateway.auth import Door
from vision_o3.gateway.forms import FormLimits
from vision_o3.gateway.limits import Limits
from vision_o3.gateway.metrics import Metrics
from vision_o3.gateway.middleware import request_id_of
from vision_o3.gateway.readiness import ReadinessCheck
from vision_o3.gateway.stopping import Stopping
from vision_o3.gateway.tokens import Tokens
from vision_o3.registry.accounts import Accounts
from vision_o3.registry.hot_cache import HotCache
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.permissions import ADMIN, SCOPES, Principal
from vision_o3.registry.services import DatasetService, ModelService
from vision_o3.registry.signing_in import SignIn, parse_address
from vision_o3.registry.spool import Spool
from vision_o3.registry.watching import Watcher
from vision_o3.settings import Settings
from vision_o3.storage.base import ObjectStore

_TOKEN_PATH = "/auth/token"  # noqa: S105 - a path
_OAUTH2 = OAuth2(
    scheme_name="credentials",
    flows=OAuthFlows(
        clientCredentials=OAuthFlowClientCredentials(
            tokenUrl=_TOKEN_PATH, scopes=SCOPES
        ),
        password=OAuthFlowPassword(tokenUrl=_TOKEN_PATH, scopes=SCOPES),
    ),
    auto_error=False,
)
_BEARER = HTTPBearer(scheme_name="token", bearerFormat="JWT", auto_error=False)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What one gateway process is made of; closed by the app's lifespan."""

    settings: Settings
    database: Database
    store: ObjectStore
    spool: Spool
    partial_uploads: PartialUploads
    inspector: Inspector
    hot_cache: HotCache | None
    models: ModelService
    datasets: DatasetService
    accounts: Accounts
    sign_in: SignIn
    tokens: Tokens
    door: Door
    limits: Limits
    signing_in: anyio.CapacityLimiter
    """Bounds the memory and processors that hashing of secrets takes."""
    publishing: anyio.CapacityLimiter
    """Keeps publishers that wait for each other from blocking readers."""
    scanning: anyio.CapacityLimiter
    """Of uploads in parts, to tell what is missing: each reads a whole file."""
    metrics: Metrics
    watcher: Watcher
    readiness: ReadinessCheck
    stopping: Stopping
    copying: anyio.CapacityLimiter
    """Of stored content that is published again: each takes a file's room and time."""

    @property
    def form_limits(self) -> FormLimits:
        """What an upload form may hold."""
        return FormLimits(
            fields=self.settings.max_form_fields,
            field_size=self.settings.max_field_bytes,
            stall_timeout_s=self.settings.stall_timeout_s,
        )


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def address_of(request: Request) -> str | None:
    """Return where a request came from; behind a trusted proxy, who asked that.

    ``None`` if that is no address: what a proxy passes on may be anything.
    """
    host = request.client.host if request.client is not None else ""
    return None if parse_address(host) is None else host


GatewayDep = Annotated[Gateway, Depends(_gateway)]


def _token_in(authorization: str | None) -> str:
    """Return the token that a request has sent."""
    kind, _, token = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise UnauthenticatedError(
            "This needs a token, sent as 'Authorization: Bearer …'. "
            f"Get one at POST {_TOKEN_PATH}.",
            refused="missing",
        )
    return token.strip()


async def _admitted(
    request: Request,
    gateway: GatewayDep,
    authorization: Annotated[str | None, Security(_OAUTH2)],
    _: Annotated[object, Security(_BEARER)],
) -> Principal:
    """Let in whoever has a token that holds, whatever it is for."""
    known: Principal | None = getattr(request.state, "admitted", None)
    if known is not None:  # another dependency of this request asked
        return known
    principal = await gateway.door.admit(
        _token_in(authorization),
        address=address_of(request),
        request_id=request_id_of(request.scope),
    )
    request.state.principal = principal.id
    gateway.limits.count_request(principal.id)
    request.state.admitted = principal
    return principal


AnyPrincipal = Annotated[Principal, Security(_admitted)]


async def _permitted(
    request: Request, needed: SecurityScopes, principal: AnyPrincipal
) -> Principal:
    """Let in who has all scopes: for the line that the path names, if it names one."""
    line = request.path_params.get("name")
    for scope in needed.scopes:
        principal.require(scope, line)
    return principal


async def _permitted_some(needed: SecurityScopes, principal: AnyPrincipal) -> Principal:
    """Let in who has all scopes for whichever lines: the route looks at which."""
    for scope in needed.scopes:
        if not principal.has_any(scope):
            principal.require(scope)
    return principal


async def _may_upload(principal: AnyPrincipal) -> Principal:
    if not principal.has_any("dataset:write") and not principal.has_any("model:write"):
        principal.require("model:write")
    return principal


async def _downloading(
    principal: AnyPrincipal, gateway: GatewayDep
) -> AsyncIterator[None]:
    """Count a download until its answer has ended."""
    with gateway.limits.downloads.one_more(principal.id):
        yield


async def _uploading(
    principal: AnyPrincipal, gateway: GatewayDep
) -> AsyncIterator[None]:
    """Count an upload until it is answered."""
    with gateway.limits.uploads.one_more(principal.id):
        yield


async def _scraping(
    request: Request,
    gateway: GatewayDep,
    authorization: Annotated[str | None, Security(_OAUTH2)],
    bearer: Annotated[object, Security(_BEARER)],
) -> None:
    """Let in who sends the token for metrics, or has the scope admin."""
    expected = gateway.settings.metrics_token
    if expected is not None:
        given = _token_in(authorization).encode()
        if hmac.compare_digest(given, expected.get_secret_value().encode()):
            request.state.principal = "metrics"
            return
    principal = await _admitted(request, gateway, authorization, bearer)
    principal.require(ADMIN)


async def _public() -> None:
    """Let anybody in."""


def _all(scope: str) -> params.Depends:
    return params.Security(_permitted, scopes=[scope])


def _some(scope: str) -> params.Depends:
    return params.Security(_permitted_some, scopes=[scope])


# Each lets in who has the scope; where the path names a line, for this one.
MayReadModels = _all("model:read")
MayReadDatasets = _all("dataset:read")
MayWriteModels = _all("model:write")
MayWriteDatasets = _all("dataset:write")
Admin = Annotated[Principal, _all(ADMIN)]
# Each lets in who has the scope for some line; the route looks at which.
ReadsSomeModels = _some("model:read")
ReadsSomeDatasets = _some("dataset:read")
SomeModelReader = Annotated[Principal, ReadsSomeModels]
SomeModelWriter = Annotated[Principal, _some("model:write")]
SomeDatasetReader = Annotated[Principal, ReadsSomeDatasets]
SomeDatasetWriter = Annotated[Principal, _some("dataset:write")]
Uploader = Annotated[Principal, Security(_may_upload)]
"""May write some models, datasets, or both."""
Downloading = Depends(_downloading)
"""Counts the route's requests as downloads of the principal."""
Uploading = Depends(_uploading)
"""Likewise, as uploads."""
Scraper = Security(_scraping, scopes=[ADMIN])
"""Marks a route for scrapers of metrics, and for admins."""
Public = Depends(_public)
"""Marks a route that needs no token."""
