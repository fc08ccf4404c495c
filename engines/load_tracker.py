"""What the loading thread is doing, for those who ask from other threads."""

from __future__ import annotations

import threading
import time

from engines.base import LoadProgress


class LoadTracker:
    """Written by the thread that loads, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase = ""
        self._started = 0.0
        self._done_bytes = 0
        self._total_bytes: int | None = None

    def begin(self, phase: str, *, total_bytes: int | None = None) -> None:
        """A new phase, of `total_bytes` if its work can be counted."""
        with self._lock:
            self._phase, self._started = phase, time.monotonic()
            self._done_bytes, self._total_bytes = 0, total_bytes

    def advance(self, num_bytes: int) -> None:
        """So much more of the phase is done."""
        with self._lock:
            self._done_bytes += num_bytes

    def end(self) -> None:
        """Nothing is being loaded any more."""
        self.begin("")

    def progress(self) -> LoadProgress | None:
        """The phase in progress; None before the first and after `end`."""
        with self._lock:
            if not self._phase:
                return None
            seconds = time.monotonic() - self._started
            total = self._total_bytes
            if total is None:
                return LoadProgress(self._phase, seconds)
            done = min(self._done_bytes, total)
            return LoadProgress(self._phase, seconds, done / total if total else 1.0, done, total)
