"""What is going on between the first breath and readiness, for /health/startup."""

from __future__ import annotations

import time
from collections.abc import Callable

from engines.base import Engine, LoadProgress


class Startup:
    """Written by the task that loads, read from any thread. `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._phase = "starting"
        self._engine: Engine | None = None

    def begin(self, phase: str, engine: Engine | None = None) -> None:
        """A new phase; with `engine`, what that says of its own start is more precise."""
        self._phase, self._engine = phase, engine

    def end(self) -> None:
        """Loaded, or failed."""
        self._ended = self._clock()

    @property
    def elapsed_seconds(self) -> float:
        """Since the process began to load; stands still once it is over."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    def progress(self) -> LoadProgress:
        """What is being done."""
        own = None if self._engine is None else self._engine.load_progress()
        return own or LoadProgress(self._phase, self.elapsed_seconds)
