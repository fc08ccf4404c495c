"""Probes, the version and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.error_responses import report_response
from service.errors import NotReady, describe
from service.openapi import error_responses
from service.protocol.service_info import Liveness, Readiness, VersionInfo
from service.state import service_state
from service.version import package_version

router = APIRouter(tags=["operation"])


@router.get("/health/live", responses=error_responses(500), operation_id="live")
async def live() -> Liveness:
    """200 as soon as the process listens, also while the model loads."""
    return Liveness(status="live")


@router.get(
    "/health/ready", response_model=Readiness, responses=error_responses(500, 503), operation_id="ready"
)
async def ready(request: Request) -> Readiness | Response:
    """200 while new requests are welcome; 503 while loading, draining, or after the engine has died."""
    try:
        service_state(request).lifecycle.ensure_ready()
    except NotReady as error:
        # Not counted among the rejected requests: a probe is none.
        return report_response(describe(error))
    return Readiness(status="ready")


@router.get("/version", responses=error_responses(401, 500), operation_id="version")
async def version() -> VersionInfo:
    """The version of the installed package."""
    return VersionInfo(version=package_version())


@router.get(
    "/metrics",
    responses={
        **error_responses(401, 500),
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    },
    response_class=Response,
    operation_id="metrics",
)
async def metrics(request: Request) -> Response:
    """Counters, histograms and the engine's gauges."""
    return Response(service_state(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
