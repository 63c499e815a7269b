"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter, Response

from vision_o3 import __version__
from vision_o3.gateway.deps import GatewayDep, Public
from vision_o3.gateway.readiness import OK
from vision_o3.schemas.service import Health, Readiness

BEING_STOPPED = "It is being stopped."

router = APIRouter(prefix="/health", tags=["health"], dependencies=[Public])


@router.get("", operation_id="health")
async def health() -> Health:
    """Say that the process answers."""
    return Health(version=__version__)


@router.get(
    "/ready",
    operation_id="ready",
    responses={503: {"model": Readiness, "description": "Not now; `checks` say why."}},
)
async def ready(response: Response, gateway: GatewayDep) -> Readiness:
    """Say whether database, store and disk are as they should be.

    What was found counts for a second. A gateway that is being stopped is not ready.
    """
    if gateway.stopping.begun:
        checks = {"gateway": BEING_STOPPED}
    else:
        checks = await gateway.readiness.checks()
    if any(found != OK for found in checks.values()):
        response.status_code = 503
        return Readiness(status="not ready", checks=checks)
    return Readiness(status="ready", checks=checks)
