"""Whether the process may take requests: loading, ready, standing still, going, or lost."""

from __future__ import annotations

from enum import Enum

from service.errors import NotReady

_RETRY_AFTER_SECONDS = 5.0


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
    """The phase the process is in. It only moves forward; `failure` says why it ended badly.

    While it is ready two things can make it unwelcoming: `stall`, which says since when the engine has stood
    still and may go away again, and `is_leaving`: a shutdown was announced to load balancers, but what they
    send until they have noticed is still served. `was_ready`: it has been ready at some time.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.failure: str | None = None
        self.stall: str | None = None
        self.is_leaving = False
        self.was_ready = False

    def mark_ready(self) -> None:
        """The engine can generate; has no effect when a shutdown came first."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY
            self.was_ready = True

    def announce_shutdown(self) -> None:
        """Readiness goes off; requests are still served."""
        self.is_leaving = True

    def begin_drain(self) -> None:
        """Take no new requests; those in flight go on."""
        self.is_leaving = True
        if self.phase is not Phase.FAILED:
            self.phase = Phase.DRAINING

    def mark_failed(self, reason: str) -> None:
        """The engine could not start or has died. No news while draining: it is being closed then anyway."""
        if self.phase in (Phase.LOADING, Phase.READY):
            self.phase = Phase.FAILED
            self.failure = reason

    def ensure_ready(self) -> None:
        """Raises NotReady unless new requests are served."""
        if self.phase is not Phase.READY:
            raise NotReady(_EXPLANATIONS[self.phase], retry_after_seconds=_RETRY_AFTER_SECONDS)
        if self.stall is not None:
            raise NotReady(self.stall, retry_after_seconds=_RETRY_AFTER_SECONDS)

    def ensure_welcoming(self) -> None:
        """Raises NotReady unless load balancers should send new requests here: the readiness probe."""
        self.ensure_ready()
        if self.is_leaving:
            raise NotReady(_EXPLANATIONS[Phase.DRAINING], retry_after_seconds=_RETRY_AFTER_SECONDS)
