"""Noting the moments from which an engine fills `SequenceTiming`."""

from __future__ import annotations

from dataclasses import dataclass

from engines.request import SequenceTiming


@dataclass(slots=True)
class SequenceClock:
    """The moments of one sequence, all of `time.perf_counter()`."""

    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None

    def start(self, now: float) -> None:
        """A step that computes the sequence begins; only the first one counts."""
        if self.started_at is None:
            self.started_at = now

    def first_token(self, now: float) -> bool:
        """A token has come; whether it is the first one."""
        if self.first_token_at is not None:
            return False
        self.first_token_at = now
        return True

    def timing(self, now: float, num_preemptions: int = 0) -> SequenceTiming:
        """The time so far, divided. A sequence that never got a token spent all of its steps in prefill."""
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return SequenceTiming(
            queue_seconds=started - self.submitted_at,
            prefill_seconds=first - started,
            decode_seconds=now - first,
            num_preemptions=num_preemptions,
        )
