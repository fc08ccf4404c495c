"""What a step counts as, and where a sequence's time goes."""

from __future__ import annotations

import pytest

from engines.base import StepKind
from engines.cpu.step_times import StepTimes, prefill_chunks, step_kind
from engines.request import GenerationRequest, SamplingParams, SequenceTiming
from engines.scheduler import Scheduler
from engines.scheduler.config import SchedulerConfig
from engines.sequence_clock import SequenceClock


def _scheduler(max_num_batched_tokens: int = 8) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=16,
            block_size=4,
            max_num_seqs=4,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_caching=False,
            max_model_len=64,
        )
    )


def _add(scheduler: Scheduler, request_id: str, num_tokens: int) -> None:
    scheduler.add(GenerationRequest(request_id, tuple(range(num_tokens)), SamplingParams(max_tokens=8)))


def test_prefill_then_decode_then_both() -> None:
    scheduler = _scheduler()
    _add(scheduler, "a", 10)
    kinds = []
    for step in range(5):
        if step == 3:
            _add(scheduler, "b", 1)  # a prompt of one token is prefill as well
        batch = scheduler.schedule()
        kinds.append(step_kind(len(batch) - len(prefill_chunks(batch)), len(batch)))
        scheduler.complete(batch, {c.sequence.request_id: (1,) for c in batch if c.needs_logits})
    assert kinds == [StepKind.PREFILL, StepKind.PREFILL, StepKind.DECODE, StepKind.MIXED, StepKind.DECODE]


def test_steps_are_counted_by_kind() -> None:
    times = StepTimes()
    times.record(StepKind.DECODE, 0.25)
    times.record(StepKind.DECODE, 0.75)
    snapshot = times.snapshot()
    assert snapshot[StepKind.DECODE].count == 2
    assert snapshot[StepKind.DECODE].total == pytest.approx(1.0)
    assert snapshot[StepKind.PREFILL].count == 0


def test_a_sequences_time_is_divided_completely() -> None:
    clock = SequenceClock(10.0)
    assert clock.timing(12.0) == SequenceTiming(2.0, 0.0, 0.0)
    clock.start(13.0)
    clock.start(14.0)  # only the first step counts
    assert clock.timing(15.0) == SequenceTiming(3.0, 2.0, 0.0)
    assert clock.first_token(16.0)
    assert not clock.first_token(17.0)
    assert clock.timing(20.0, num_preemptions=2) == SequenceTiming(3.0, 3.0, 4.0, 2)
