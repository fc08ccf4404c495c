"""Notices that TensorRT-LLM has stopped working although it still answers politely.

Known cases (reference section 5.4): a rank has crashed and the others wait for it for ever; "no free slots".
"""

from __future__ import annotations

import time
from collections.abc import Callable

# A long prompt is silent while it is computed. Slower than this no supported GPU computes one.
PREFILL_TOKENS_PER_SECOND = 100.0


class Watchdog:
    """Measures the silence of a runtime that has work. A step and a token are progress; so is a new prompt's
    computation, which is given time in proportion to its length.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, stall_timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_seconds = stall_timeout_seconds
        self._clock = clock
        self._last_progress = clock()

    def progress(self) -> None:
        """The runtime has done something, or has just been given work after a rest."""
        self._last_progress = self._clock()

    def verdict(self, *, num_running: int, num_unread_prompt_tokens: int) -> str | None:
        """Why the runtime must be given up, or None. The tokens are those of running prompts that have not
        led to a first token yet."""
        if num_running == 0:
            self.progress()
            return None
        silent_seconds = self._clock() - self._last_progress
        allowed_seconds = self._timeout_seconds + num_unread_prompt_tokens / PREFILL_TOKENS_PER_SECOND
        if silent_seconds <= allowed_seconds:
            return None
        return (
            f"no step and no token for {silent_seconds:.1f} s while {num_running} requests were running "
            f"({allowed_seconds:.1f} s are allowed)"
        )
