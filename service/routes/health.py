"""Probes, the version and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.error_responses import probe_response
from service.openapi import error_responses
from service.protocol.service_info import Liveness, Loading, Readiness, Started, Unhealthy, VersionInfo
from service.state import service_state
from service.version import package_version

router = APIRouter(tags=["operation"])


@router.get(
    "/health/live",
    response_model=Liveness,
    responses={
        **error_responses(500),
        503: {"model": Unhealthy, "description": "The loop is blocked."},
    },
    operation_id="live",
)
async def live(request: Request) -> Response:
    """200 as soon as the process listens, also while the model loads; 503 when only a restart helps."""
    return probe_response(service_state(request).health.live())


@router.get(
    "/health/ready", response_model=Readiness, responses=error_responses(500, 503), operation_id="ready"
)
async def ready(request: Request) -> Response:
    """200 while new requests are welcome; 503 while loading, standing still, draining, or after a death."""
    # Not counted among the rejected requests: a probe is none.
    return probe_response(service_state(request).health.ready())


@router.get(
    "/health/startup",
    response_model=Started,
    responses={**error_responses(500), 503: {"model": Loading, "description": "The model is loading."}},
    operation_id="startup",
)
async def startup(request: Request) -> Response:
    """200 once the model has been loaded; before that 503, how far it has come, and what is left."""
    return probe_response(service_state(request).health.startup())


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
