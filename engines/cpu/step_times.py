"""How long the steps take, by their kind."""

from __future__ import annotations

from collections.abc import Mapping

from engines.base import STEP_SECONDS, StepKind
from engines.histogram import Histogram, HistogramRecorder
from engines.scheduler.batch import Batch, ScheduledSequence


def prefill_chunks(batch: Batch) -> list[ScheduledSequence]:
    """The chunks that do more than compute a newest token; asked before the batch is completed.

    What a preempted sequence lost counts as prefill.
    """
    return [
        chunk
        for chunk in batch
        if chunk.sequence.num_uncomputed_tokens != 1 or chunk.sequence.num_generated_tokens == 0
    ]


def step_kind(num_decodes: int, num_sequences: int) -> StepKind:
    """Whether a step of so many sequences prefills, decodes or does both."""
    if num_decodes == num_sequences:
        return StepKind.DECODE
    return StepKind.MIXED if num_decodes else StepKind.PREFILL


class StepTimes:
    """Step times by kind. Recorded on the engine thread."""

    def __init__(self) -> None:
        self._recorders = {kind: HistogramRecorder(STEP_SECONDS) for kind in StepKind}

    def record(self, kind: StepKind, seconds: float) -> None:
        """Count one step."""
        self._recorders[kind].observe(seconds)

    def snapshot(self) -> Mapping[StepKind, Histogram]:
        """All steps so far."""
        return {kind: recorder.snapshot() for kind, recorder in self._recorders.items()}
