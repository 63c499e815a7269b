"""The route that Prometheus reads the gateway's numbers from."""

from __future__ import annotations

from fastapi import APIRouter, Response

from vision_o3 import errors
from vision_o3.gateway.deps import GatewayDep, Scraper
from vision_o3.gateway.metrics import CONTENT_TYPE
from vision_o3.gateway.problems import describe

router = APIRouter(tags=["health"])


class MetricsText(Response):
    """Numbers in Prometheus's text format."""

    media_type = CONTENT_TYPE


@router.get(
    "/metrics",
    operation_id="metrics",
    dependencies=[Scraper],
    response_class=MetricsText,
    responses=describe(
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.RateLimitedError,
        errors.DatabaseUnavailableError,
    ),
)
def metrics(gateway: GatewayDep) -> MetricsText:
    """Return the gateway's numbers, of all its processes together.

    For who has the permission `admin`, or sends `VISION_O3_METRICS_TOKEN` as the
    bearer token.
    """
    return MetricsText(gateway.metrics.text())
