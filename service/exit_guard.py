"""The process ends when it has to, whatever a thread or an exit handler thinks of it."""

from __future__ import annotations

import os
import threading
import time


class ExitGuard:
    """Once armed, the process has `seconds` left: nothing that hangs may keep it from being restarted."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._armed = False

    def arm(self, failure: str | None) -> None:
        """Start the clock, once; the exit status it enforces is 1 if there was a failure."""
        if self._armed:
            return
        self._armed = True
        threading.Thread(
            target=self._end, args=(int(failure is not None),), name="nybble-exit", daemon=True
        ).start()

    def _end(self, status: int) -> None:
        time.sleep(self._seconds)
        os._exit(status)
