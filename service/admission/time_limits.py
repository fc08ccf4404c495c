"""How long a request may take: the client's own deadline and the server's bounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from service.errors import BadRequest, DeadlineExceeded, QueueTimeout, ServerTimeout, ServiceError

REQUEST_TIMEOUT_HEADER = "X-Request-Timeout"


class Expired(Exception):
    """The time is up and something has been generated: it is the answer."""


class Phase(int, Enum):
    """What a request still waits for; later phases are under fewer limits."""

    TURN = 0
    FIRST_TOKEN = 1
    END = 2


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The server's bounds in seconds from a request's arrival; None is no bound."""

    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None


class TimeLimits:
    """The limits of one request. `client_seconds` is its own deadline, None if it has none."""

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        *,
        client_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client_seconds = client_seconds
        self._timeouts = timeouts or Timeouts()
        self._clock = clock
        self._arrived = clock()

    @property
    def any(self) -> bool:
        """Whether there are any limits at all."""
        return bool(self._limits(Phase.TURN))

    def next_limit(self, phase: Phase) -> tuple[float, ServiceError] | None:
        """(seconds from now, the error it ends in) of the limit that comes first; None without any."""
        found = min(self._limits(phase), key=lambda limit: limit[0], default=None)
        if found is None:
            return None
        return max(0.0, self._arrived + found[0] - self._clock()), found[1]

    def check(self, phase: Phase) -> None:
        """Raises the error of a limit that has passed."""
        limit = self.next_limit(phase)
        if limit is not None and limit[0] <= 0:
            raise limit[1]

    def _limits(self, phase: Phase) -> list[tuple[float, ServiceError]]:
        server, limits = self._timeouts, list[tuple[float, ServiceError]]()
        if self.client_seconds is not None:
            message = (
                f"Nothing was generated within the request's own time limit of {self.client_seconds:g} s."
            )
            limits.append((self.client_seconds, DeadlineExceeded(message)))
        if server.total_seconds is not None:
            message = f"Nothing was generated within the {server.total_seconds:g} s a request may take here."
            limits.append((server.total_seconds, ServerTimeout(message)))
        if phase < Phase.END and server.first_token_seconds is not None:
            message = f"The first token did not come within {server.first_token_seconds:g} s."
            limits.append((server.first_token_seconds, ServerTimeout(message)))
        if phase < Phase.FIRST_TOKEN and server.queue_seconds is not None:
            message = f"The request waited {server.queue_seconds:g} s for its turn, the most allowed here."
            limits.append((server.queue_seconds, QueueTimeout(message)))
        return limits


def client_seconds(header: str | None, field: float | None) -> float | None:
    """The shorter one of the header's and the body's time limits. Raises BadRequest."""
    given = [] if field is None else [field]
    if header is not None:
        try:
            seconds = float(header)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise BadRequest(
                f"{REQUEST_TIMEOUT_HEADER} is {header[:50]!r}; expected seconds above 0, as in 30.",
                param=REQUEST_TIMEOUT_HEADER,
            )
        given.append(seconds)
    return min(given, default=None)
