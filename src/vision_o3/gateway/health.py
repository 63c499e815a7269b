"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Response

from vision_o3 import __version__
from vision_o3.db.migrate import is_current
from vision_o3.errors import VisionO3Error
from vision_o3.gateway.deps import Gateway, GatewayDep, Public
from vision_o3.schemas.service import Health, Readiness

NO_OBJECT = "health/ready"
"""A key that no version has; looking for it shows that the store answers."""
NOT_MIGRATED = "The database's schema is not this version's: vision-o3 admin migrate."

_log = structlog.get_logger(__name__)

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
def ready(response: Response, gateway: GatewayDep) -> Readiness:
    """Say whether database and store can be reached and are as they should be."""
    checks = check_database(gateway) | check_store(gateway)
    if any(found != "ok" for found in checks.values()):
        response.status_code = 503
        return Readiness(status="not ready", checks=checks)
    return Readiness(status="ready", checks=checks)


def check_database(gateway: Gateway) -> dict[str, str]:
    """Return what is wrong with the database, or ``ok``."""
    try:
        current = is_current(gateway.settings.database_url.get_secret_value())
    except VisionO3Error:
        unknown = "unknown while the database cannot be used"
        return {"database": "The database cannot be used.", "migrations": unknown}
    return {"database": "ok", "migrations": "ok" if current else NOT_MIGRATED}


def check_store(gateway: Gateway) -> dict[str, str]:
    """Return what is wrong with the store, or ``ok``; why is said in the log only."""
    try:
        gateway.store.find(NO_OBJECT)
    except VisionO3Error as error:
        _log.warning("store.unreachable", code=error.code, message=error.message)
        return {"store": "The object store cannot be reached."}
    return {"store": "ok"}
