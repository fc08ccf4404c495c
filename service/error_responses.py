"""Errors made into answers: for the routes, for middleware, and for a stream that has begun."""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from engines.errors import EngineError
from service.chat_template import ChatTemplateError
from service.errors import ClientDisconnected, ErrorReport, ServiceError, describe
from service.health import ProbeAnswer
from service.metrics import ServiceMetrics

log = logging.getLogger("nybble.errors")


def report(error: BaseException, metrics: ServiceMetrics) -> ErrorReport:
    """Describe an error for the client, count it, and write to the log what the client is not told."""
    described = describe(error)
    if not isinstance(error, ClientDisconnected):  # that was no refusal; it has a counter of its own
        metrics.rejected.labels(described.label).inc()
    if described.status == 500:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
    return described


def error_response(error: BaseException, metrics: ServiceMetrics) -> Response:
    """The answer to a request that failed before anything was sent."""
    return report_response(report(error, metrics))


def report_response(described: ErrorReport) -> Response:
    """A described error as an answer."""
    return Response(
        orjson.dumps(described.body), described.status, described.headers, media_type="application/json"
    )


def probe_response(answer: ProbeAnswer) -> Response:
    """An answer of `Health` on the wire; never from a cache."""
    headers = {"Cache-Control": "no-store", **answer.headers}
    return Response(orjson.dumps(answer.body), answer.status, headers, media_type="application/json")


async def send_error(error: BaseException, send: Send, metrics: ServiceMetrics) -> None:
    """Answer with an error from where there is no route: middleware."""
    response = error_response(error, metrics)
    await send(
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    await send({"type": "http.response.body", "body": bytes(response.body)})


def install_error_handlers(app: FastAPI, metrics: ServiceMetrics) -> None:
    """Answer every expected error in the routes by the envelope; unexpected ones are the middleware's."""

    async def handle(request: Request, error: Exception) -> Response:
        return error_response(error, metrics)

    async def handle_no_route(request: Request, error: Exception) -> Response:
        place = f"{request.method} {request.url.path}; GET /openapi.json lists what there is"
        headers = error.headers if isinstance(error, HTTPException) else None
        if isinstance(error, HTTPException) and error.status_code == 404:
            error = HTTPException(404, f"There is no {place}.", headers)
        elif isinstance(error, HTTPException) and error.status_code == 405:
            error = HTTPException(405, f"The path exists, but not {place}.", headers)
        return error_response(error, metrics)

    for kind in (ServiceError, EngineError, ChatTemplateError, RequestValidationError):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(HTTPException, handle_no_route)
