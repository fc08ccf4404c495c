"""The process around the app: socket, uvicorn, signals, the drain before the exit."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from engines.errors import EngineDead
from service.errors import NotReady
from service.lifecycle import Phase
from service.settings import ServiceSettings
from service.settled_memory import settle_memory
from service.sockets import BACKLOG
from service.state import ServiceState
from service.tls import ServerTls

log = logging.getLogger("nybble")

# Once nothing is in flight any more, connections get this long to take their last bytes.
_FLUSH_SECONDS = 5
_TLS_WATCH_TICKS = 20


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT it goes on listening, finishes what runs, then stops.

    Readiness goes off at once; for `drain_delay_seconds` what comes is still served, then it is refused. What
    still runs `drain_timeout_seconds` later, or at a second signal, is answered with an error. It also stops
    when the engine is lost; `failure` then says why. `on_stop` is called once when it is decided to stop.
    With a certificate in the settings it serves HTTPS and takes a new certificate when the files change.
    """

    def __init__(
        self, app: FastAPI, settings: ServiceSettings, *, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_FLUSH_SECONDS,
            )
        )
        self._state: ServiceState = app.state.service
        self._tls = ServerTls(settings, self._state.metrics) if settings.tls_cert_file is not None else None
        if self._tls is not None:
            self.config.load()
            self.config.ssl = self._tls.context
        self._settings = settings
        self._on_stop = on_stop
        self._has_settled = False
        self._drain_from: float | None = None
        self._drain_deadline = math.inf

    @property
    def failure(self) -> str | None:
        """Why the process has to exit with an error, if it has to."""
        return self._state.lifecycle.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGINT and SIGTERM.

        uvicorn's own version stops listening at once, and raises the signal again after a clean stop, so that
        the exit status would not be 0.
        """
        now = time.monotonic()
        if self._drain_from is None:
            delay, timeout = self._settings.drain_delay_seconds, self._settings.drain_timeout_seconds
            log.info("%s: draining in %g s, for up to %g s", signal.Signals(sig).name, delay, timeout)
            self._state.lifecycle.announce_shutdown()
            self._drain_from, self._drain_deadline = now + delay, now + delay + timeout
        else:
            self._drain_from = self._drain_deadline = now
        if now >= self._drain_from:
            self._state.lifecycle.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: whether to stop now."""
        if await super().on_tick(counter):
            return True
        if self._tls is not None and counter % _TLS_WATCH_TICKS == 0:
            self._tls.watch()
        if not self._has_settled and self._state.lifecycle.phase is Phase.READY:
            self._has_settled = True
            settle_memory()
        stops = self._has_failed() or self._has_drained()
        if stops:
            self._on_stop()
        return stops

    def _has_failed(self) -> bool:
        if self._state.lifecycle.phase is not Phase.FAILED:
            return False
        self._state.cutoff.end_all(EngineDead(self.failure or "the engine has stopped"))
        return True

    def _has_drained(self) -> bool:
        now = time.monotonic()
        if self._drain_from is None or now < self._drain_from:
            return False
        self._state.lifecycle.begin_drain()
        num_in_flight = self._state.admission.num_in_flight
        if num_in_flight and now >= self._drain_deadline:
            log.warning("drain: %d sequences did not finish in time", num_in_flight)
            self._state.cutoff.end_all(
                NotReady("The server had to stop before the answer was complete.", retry_after_seconds=1.0)
            )
            return True
        return num_in_flight == 0
