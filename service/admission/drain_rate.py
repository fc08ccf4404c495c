"""How fast work leaves the house, for Retry-After and for the estimate of a wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 60.0
_MIN_WAIT_SECONDS = 1.0
_MAX_WAIT_SECONDS = 60.0


class DrainRate:
    """Sequences finished in the last minute in which there was work; idle time does not count.

    The clock has to be monotonic: a step of the wall clock must not change an estimate.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque(maxlen=256)
        self._busy_seconds = 0.0
        self._busy_since: float | None = None

    def set_busy(self, busy: bool) -> None:
        """Say whether there is work; only then the time counts."""
        if busy and self._busy_since is None:
            self._busy_since = self._clock()
        elif not busy:
            self._busy_seconds = self._now()
            self._busy_since = None

    def finish(self, num_tokens: int) -> None:
        """A sequence has left; `num_tokens` is what had been reserved for it."""
        self._finished.append((self._now(), num_tokens))

    def sequences_per_second(self) -> float | None:
        """None while fewer than two sequences have finished: too little to tell."""
        return self._rate(tokens=False)

    def wait_seconds(self, *, num_sequences: float = 0.0, num_tokens: float = 0.0) -> float:
        """How long until so many sequences and tokens have left, 1 to 60 s.

        Before anything has finished, as long again as it has taken so far.
        """
        sequence_rate, token_rate = self._rate(tokens=False), self._rate(tokens=True)
        if sequence_rate is None or token_rate is None:
            return _clamp(self._now())
        return _clamp(max(num_sequences / sequence_rate, num_tokens / token_rate))

    def _rate(self, *, tokens: bool) -> float | None:
        now = self._now()
        while self._finished and now - self._finished[0][0] > _WINDOW_SECONDS:
            self._finished.popleft()
        if len(self._finished) < 2:
            return None
        # What finished first began before the window of those that are known, hence one less is counted.
        counted = list(self._finished)[1:]
        seconds = max(now - self._finished[0][0], 1e-3)
        amount = sum(num_tokens for _, num_tokens in counted) if tokens else len(counted)
        return max(amount, 1) / seconds

    def _now(self) -> float:
        """Seconds with work so far."""
        since = 0.0 if self._busy_since is None else self._clock() - self._busy_since
        return self._busy_seconds + since


def _clamp(seconds: float) -> float:
    return min(max(seconds, _MIN_WAIT_SECONDS), _MAX_WAIT_SECONDS)
