"""The process around the app: socket, uvicorn, signals, the drain before the exit."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.lifecycle import Phase
from service.settings import ServiceSettings
from service.state import ServiceState

log = logging.getLogger("nybble")

_BACKLOG = 2048
# Once nothing is in flight any more, connections get this long to take their last bytes.
_FLUSH_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 lets the system choose. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server((address[0], address[1]), family=family, backlog=_BACKLOG)


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT it goes on listening, refuses new work, finishes what runs, then stops.

    What still runs after `drain_timeout_seconds`, or at a second signal, is ended by closing the engine:
    its clients get an error. It also stops when the engine is lost; `failure` then says why.
    """

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
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
                backlog=_BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_FLUSH_SECONDS,
            )
        )
        self._state: ServiceState = app.state.service
        self._drain_timeout_seconds = settings.drain_timeout_seconds
        self._drain_deadline: float | None = None

    @property
    def failure(self) -> str | None:
        """Why the process has to exit with an error, if it has to."""
        return self._state.lifecycle.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGINT and SIGTERM.

        uvicorn's own version stops listening at once, and raises the signal again after a clean stop, so that
        the exit status would not be 0.
        """
        if self._drain_deadline is None:
            log.info("%s: draining, up to %g s", signal.Signals(sig).name, self._drain_timeout_seconds)
            self._state.lifecycle.begin_drain()
            self._drain_deadline = time.monotonic() + self._drain_timeout_seconds
        else:
            self._drain_deadline = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: whether to stop now."""
        if await super().on_tick(counter) or self._state.lifecycle.phase is Phase.FAILED:
            return True
        if self._drain_deadline is None:
            return False
        num_in_flight = self._state.admission.num_in_flight
        if num_in_flight and time.monotonic() >= self._drain_deadline:
            log.warning("drain: %d sequences did not finish in time", num_in_flight)
            if (model := self._state.loaded_model) is not None:
                await model.engine.close()
            return True
        return num_in_flight == 0
