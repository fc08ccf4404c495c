"""How long the steps take, by their kind."""

from __future__ import annotations

from collections.abc import Mapping

from engines.base import STEP_SECONDS, StepKind
from engines.histogram import Histogram, HistogramRecorder
from engines.scheduler.batch import Batch


def step_kind(batch: Batch) -> StepKind:
    """Whether the batch prefills, decodes or does both; what a preempted sequence lost counts as prefill.

    Asked before the batch is completed.
    """
    num_decodes = sum(
        chunk.sequence.num_uncomputed_tokens == 1 and chunk.sequence.num_generated_tokens > 0
        for chunk in batch
    )
    if num_decodes == len(batch):
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
