"""The process ends when it has to, whatever a thread or an exit handler thinks of it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

log = logging.getLogger("nybble")


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
        threading.Thread(target=self._end, args=(failure,), name="nybble-exit", daemon=True).start()

    def _end(self, failure: str | None) -> None:
        time.sleep(self._seconds)
        log.error("something has not ended within %g s: the process is ended by force", self._seconds)
        if failure is not None:
            print(f"error: {failure}", file=sys.stderr, flush=True)
        os._exit(0 if failure is None else 1)
