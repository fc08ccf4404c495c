"""What the probes are told. The same for the routes of the app and for the health server's thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.errors import NotReady, describe
from service.lifecycle import Lifecycle, Phase
from service.loop_heartbeat import LoopHeartbeat
from service.startup import Startup

# Requests should go elsewhere well before a restart is the only help.
_UNREADY_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """Status 200 or 503, and a JSON body."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


class Health:
    """Reads what others write; safe from any thread, and quick.

    `liveness_seconds`: for how long the event loop may be blocked until the process counts as dead.
    """

    def __init__(
        self, lifecycle: Lifecycle, startup: Startup, heartbeat: LoopHeartbeat, *, liveness_seconds: float
    ) -> None:
        self._lifecycle = lifecycle
        self._startup = startup
        self._heartbeat = heartbeat
        self._liveness_seconds = liveness_seconds

    def live(self) -> ProbeAnswer:
        """Bad only when nothing but a restart helps: the loop is blocked. Loading and draining are life."""
        if (silent := self._heartbeat.silent_seconds) > self._liveness_seconds:
            return ProbeAnswer(503, {"status": "blocked", "reason": _blocked(silent)})
        return ProbeAnswer(200, {"status": "live"})

    def ready(self) -> ProbeAnswer:
        """Whether new requests should be sent here."""
        try:
            self._lifecycle.ensure_welcoming()
            if (silent := self._heartbeat.silent_seconds) > self._liveness_seconds * _UNREADY_SHARE:
                raise NotReady(_blocked(silent), retry_after_seconds=5.0)
        except NotReady as error:
            described = describe(error)
            return ProbeAnswer(described.status, described.body, described.headers)
        return ProbeAnswer(200, {"status": "ready"})

    def startup(self) -> ProbeAnswer:
        """Whether loading is over, else how far it has come. Once 200 it stays so, also while draining."""
        lifecycle, startup = self._lifecycle, self._startup
        elapsed = round(startup.elapsed_seconds, 3)
        if lifecycle.phase is Phase.FAILED and not lifecycle.was_ready:
            body = {"status": "failed", "reason": lifecycle.failure, "elapsed_seconds": elapsed}
            return ProbeAnswer(503, body)
        if lifecycle.was_ready:
            return ProbeAnswer(200, {"status": "started", "elapsed_seconds": elapsed})
        progress = startup.progress()
        eta = progress.eta_seconds
        return ProbeAnswer(
            503,
            {
                "status": "loading",
                "phase": progress.phase,
                "fraction": None if progress.fraction is None else round(progress.fraction, 4),
                "done_bytes": progress.done_bytes,
                "total_bytes": progress.total_bytes,
                "eta_seconds": None if eta is None else round(eta, 1),
                "elapsed_seconds": elapsed,
            },
        )


def _blocked(seconds: float) -> str:
    return f"The event loop has been blocked for {seconds:.1f} s."
