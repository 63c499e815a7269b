"""Every dependency of a route, as an alias; nothing else calls ``Depends``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Request, Security
from fastapi.openapi.models import (
    OAuthFlowClientCredentials,
    OAuthFlowPassword,
    OAuthFlows,
)
from fastapi.security import HTTPBearer, OAuth2, SecurityScopes

from vision_o3.db.engine import Database
from vision_o3.errors import UnauthenticatedError
from vision_o3.gateway.auth import SCOPES, Principal, Tokens
from vision_o3.gateway.forms import FormLimits
from vision_o3.registry.hot_cache import HotCache
from vision_o3.registry.inspecting import Inspector
from vision_o3.registry.partial_uploads import PartialUploads
from vision_o3.registry.services import DatasetService, ModelService
from vision_o3.registry.spool import Spool
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
    tokens: Tokens
    signing_in: anyio.CapacityLimiter
    """Bounds the memory and processors that hashing of secrets takes."""
    publishing: anyio.CapacityLimiter
    copying: anyio.CapacityLimiter
    """Of stored content that is published again: each takes a file's room and time."""
    """Keeps publishers that wait for each other from blocking readers."""

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


GatewayDep = Annotated[Gateway, Depends(_gateway)]


async def _authenticated(
    request: Request,
    needed: SecurityScopes,
    gateway: GatewayDep,
    authorization: Annotated[str | None, Security(_OAUTH2)],
    _: Annotated[object, Security(_BEARER)],
) -> Principal:
    kind, _, token = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise UnauthenticatedError(
            "This needs a token, sent as 'Authorization: Bearer …'. "
            f"Get one at POST {_TOKEN_PATH}.",
        )
    principal = gateway.tokens.check(token.strip())
    request.state.principal = principal.id
    for scope in needed.scopes:
        principal.require(scope)
    return principal


async def _may_upload(
    principal: Annotated[Principal, Security(_authenticated)],
) -> Principal:
    if "dataset:write" not in principal.scopes:
        principal.require("model:write")
    return principal


async def _public() -> None:
    """Let anybody in."""


MayReadModels = Security(_authenticated, scopes=["model:read"])
MayWriteModels = Security(_authenticated, scopes=["model:write"])
MayReadDatasets = Security(_authenticated, scopes=["dataset:read"])
MayWriteDatasets = Security(_authenticated, scopes=["dataset:write"])
ModelReader = Annotated[Principal, MayReadModels]
ModelWriter = Annotated[Principal, MayWriteModels]
DatasetReader = Annotated[Principal, MayReadDatasets]
DatasetWriter = Annotated[Principal, MayWriteDatasets]
Uploader = Annotated[Principal, Depends(_may_upload)]
"""May write models, datasets, or both."""
Public = Depends(_public)
"""Marks a route that needs no token."""
