"""A bounded number of sequences in the house: a slot is taken before any work is done for a request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import BadRequest, TooManyRequests

_WINDOW_SECONDS = 60.0
_MAX_RETRY_AFTER_SECONDS = 60.0


class Admission:
    """Counts sequences that run or wait, up to `max_running + max_queued`.

    Used from one event loop: `reserve` checks and takes in one go, without an await in between.
    """

    def __init__(
        self, *, max_running: int, max_queued: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity = max_running + max_queued
        self.num_in_flight = 0
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=256)

    @contextmanager
    def reserve(self, num_sequences: int, *, param: str = "n") -> Iterator[None]:
        """Hold `num_sequences` slots for the length of the block.

        Raises BadRequest if they could never be had and TooManyRequests if they cannot be had now.
        """
        if num_sequences > self.capacity:
            raise BadRequest(
                f"The request asks for {num_sequences} sequences at once; this server holds at most "
                f"{self.capacity}. Split it into smaller requests.",
                param=param,
            )
        if self.num_in_flight + num_sequences > self.capacity:
            raise TooManyRequests(
                f"The server is full: {self.num_in_flight} of {self.capacity} sequences run or wait. "
                "Try again after the time in the Retry-After header.",
                retry_after_seconds=self.retry_after_seconds(num_sequences),
            )
        self.num_in_flight += num_sequences
        try:
            yield
        finally:
            self.num_in_flight -= num_sequences
            now = self._clock()
            self._finished.extend(now for _ in range(num_sequences))

    def retry_after_seconds(self, num_sequences: int) -> float:
        """How long `num_sequences` slots take to come free at the rate of the last minute, 1 to 60 s."""
        now = self._clock()
        recent = [moment for moment in self._finished if now - moment <= _WINDOW_SECONDS]
        if len(recent) < 2 or now <= recent[0]:
            return 1.0
        num_missing = self.num_in_flight + num_sequences - self.capacity
        seconds = num_missing * (now - recent[0]) / len(recent)
        return min(max(seconds, 1.0), _MAX_RETRY_AFTER_SECONDS)
