"""Probes and metrics on a port and a thread of their own, out of the way of the main event loop's work."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.auth import RequireApiKey
from service.error_responses import probe_response
from service.health import Health, ProbeAnswer
from service.metrics import ServiceMetrics
from service.sockets import bind
from service.state import ServiceState

log = logging.getLogger("nybble")

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0


class HealthServerError(Exception):
    """The thread could not begin to serve."""


def health_app(health: Health, metrics: ServiceMetrics, guard: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
    """The four routes; `guard` is put around them and decides who may read the metrics."""

    def probe(answer: Callable[[], ProbeAnswer]) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            return probe_response(answer())

        return endpoint

    async def exposition(request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return guard(
        Starlette(
            routes=[
                Route("/health/live", probe(health.live)),
                Route("/health/ready", probe(health.ready)),
                Route("/health/startup", probe(health.startup)),
                Route("/metrics", exposition),
            ]
        )
    )


class HealthServer:
    """Serves `app` over plain HTTP on `listener` from a thread with an event loop of its own."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="nybble-health", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Returns once it answers. Raises HealthServerError."""
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise HealthServerError("the health server's thread did not start; the log says more")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop listening and join the thread."""
        self._server.should_exit = True
        self._thread.join(timeout=_STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except Exception:
            log.exception("the health server has stopped")


@contextmanager
def open_health_server(state: ServiceState, main_port: int) -> Iterator[int | None]:
    """Serve health on a port of its own for the length of the block; gives the port, None if there is none.

    Raises OSError when the port that was asked for is taken; without a wish, that is only a warning.
    """
    settings = state.settings
    if settings.health_port == "off":
        yield None
        return
    wished = settings.health_port
    port = wished if wished is not None else 0 if settings.port == 0 else (main_port + 1) % 65536
    host = settings.host if settings.health_host is None else settings.health_host
    try:
        listener = bind(host, port)
    except OSError as error:
        if wished is not None:
            raise OSError(f"cannot listen on {host}:{port} for health checks: {error}") from error
        log.warning(
            "no health port: %s:%d cannot be had (%s); choose one with --health-port", host, port, error
        )
        yield None
        return

    def guard(app: ASGIApp) -> ASGIApp:
        return (
            app
            if settings.metrics_without_key
            else RequireApiKey(app, keys=state.keys, metrics=state.metrics)
        )

    server = HealthServer(health_app(state.health, state.metrics, guard), listener)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()
