"""Readiness follows progress: an engine that has work and does no step stands still, whatever it says."""

from __future__ import annotations

import time
from collections.abc import Callable

from engines.base import EngineStats
from service.lifecycle import Lifecycle

# A model too big for its machine may take long over a step; that is known once it has taken one.
_SLOWEST_STEP_FACTOR = 3.0


class ProgressWatch:
    """Tells `lifecycle` when an engine with work has not made a step for too long, and when it does again.

    A step with a chunk of a prompt is progress as one with a token is, so a long prefill is no standstill;
    so is a grammar compiled.
    After `stall_seconds` readiness goes off; after `give_up_seconds` the engine counts as lost. Both grow to
    three times the longest step seen. `clock` returns seconds and never goes back: the wall clock may.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        stats: Callable[[], EngineStats],
        *,
        stall_seconds: float,
        give_up_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifecycle = lifecycle
        self._stats = stats
        self._stall_seconds = stall_seconds
        self._give_up_seconds = give_up_seconds
        self._clock = clock
        self._since = clock()
        self._marker = (-1, -1, -1)
        self._slowest_step_seconds = 0.0

    def check(self) -> None:
        """Look once; to be called several times within `stall_seconds`."""
        now = self._clock()
        stats = self._stats()
        num_pending = stats.num_running + stats.num_waiting
        marker = (
            stats.num_steps_total,
            stats.num_generated_tokens_total,
            stats.num_grammar_compiles_total,
        )
        if num_pending == 0 or marker != self._marker:
            if num_pending:
                self._slowest_step_seconds = max(self._slowest_step_seconds, now - self._since)
            self._marker, self._since = marker, now
            self._lifecycle.stall = None
            return
        self._judge(now - self._since, num_pending)

    def _judge(self, seconds: float, num_pending: int) -> None:
        patience = _SLOWEST_STEP_FACTOR * self._slowest_step_seconds
        if seconds <= max(self._stall_seconds, patience):
            return
        reason = f"The engine has made no progress for {seconds:.1f} s with {num_pending} sequences to serve."
        self._lifecycle.stall = reason
        if seconds > max(self._give_up_seconds, patience):
            self._lifecycle.mark_failed(reason)
