"""Whether the process may take requests: loading, ready, draining, or lost."""

from __future__ import annotations

from enum import Enum

from service.errors import NotReady


class Phase(str, Enum):
    """The life of a process: loading, ready, and then one of the other two."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


_EXPLANATIONS = {
    Phase.LOADING: "The model is still loading; try again shortly.",
    Phase.DRAINING: "The server is shutting down; send the request to another instance.",
    Phase.FAILED: "The engine has stopped; the server is about to exit.",
}


class Lifecycle:
    """The phase the process is in. It only moves forward; `failure` says why it ended badly."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.failure: str | None = None

    def mark_ready(self) -> None:
        """The engine can generate; has no effect when a shutdown came first."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def begin_drain(self) -> None:
        """Take no new requests; those in flight go on."""
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def mark_failed(self, reason: str) -> None:
        """The engine could not start or has died. No news while draining: it is being closed then anyway."""
        if self.phase in (Phase.LOADING, Phase.READY):
            self.phase = Phase.FAILED
            self.failure = reason

    def ensure_ready(self) -> None:
        """Raises NotReady unless new requests are welcome."""
        if self.phase is not Phase.READY:
            raise NotReady(_EXPLANATIONS[self.phase], retry_after_seconds=5.0)
