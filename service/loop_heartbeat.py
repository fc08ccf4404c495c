"""A sign of life from the event loop that serves requests, for those who look from another thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_SECONDS = 0.1


class LoopHeartbeat:
    """A loop that is busy beats late by what its longest callback takes; one that is blocked does not beat.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self.lag_seconds = 0.0  # by how much the last beat was late

    async def run(self, at_each_beat: Callable[[], None]) -> None:
        """Beat for ever."""
        while True:
            now = self._clock()
            if self._last is not None:
                self.lag_seconds = max(0.0, now - self._last - BEAT_SECONDS)
            self._last = now
            at_each_beat()
            await asyncio.sleep(BEAT_SECONDS)

    @property
    def silent_seconds(self) -> float:
        """How long the last beat is ago; 0 before the first."""
        return 0.0 if self._last is None else self._clock() - self._last
