"""What prompt tokens add to a step is learnt from steps, as a function of tokens and context."""

from __future__ import annotations

import pytest

from engines.cpu.prefill_cost import PrefillCost, PrefillWork
from engines.request import GenerationRequest
from engines.scheduler import ScheduledSequence, Sequence


def seconds_of(work: PrefillWork) -> float:
    pairs = work.num_pairs + 2 * work.num_positions
    return 0.002 * work.num_chunks + 0.003 * work.num_tokens + 1e-6 * pairs


def learnt(contexts: range, sizes: tuple[int, ...] = (4, 7, 12, 20)) -> PrefillCost:
    cost = PrefillCost()
    for start in contexts:
        work = PrefillWork.of_chunk(start, sizes[start % len(sizes)])
        cost.record(work, seconds_of(work))
    return cost


def test_the_work_of_a_step_is_that_of_its_chunks() -> None:
    sequence = Sequence(GenerationRequest("r", tuple(range(200))), arrival=0)
    chunks = [
        ScheduledSequence(sequence, start, num_tokens, False) for start, num_tokens in ((100, 10), (0, 4))
    ]
    assert PrefillWork.of(chunks) == PrefillWork(2, 14, 114, 10 * 105.0 + 4 * 2.0)
    assert PrefillWork.of(chunks[:1]) == PrefillWork.of_chunk(100, 10)


@pytest.mark.parametrize("start", [0, 1000, 8000])
def test_other_contexts_and_sizes_are_foreseen(start: int) -> None:
    cost = learnt(range(0, 4000, 7))
    work = PrefillWork.of_chunk(start, 10)
    assert cost.predict(work) == pytest.approx(seconds_of(work), rel=0.1)


def test_the_largest_chunk_takes_the_time_it_may() -> None:
    cost = learnt(range(0, 4000, 7))
    for start in (0, 500, 3000):
        chunk = cost.max_tokens(start, 0.1)
        assert cost.predict(PrefillWork.of_chunk(start, chunk)) <= 0.1
        assert cost.predict(PrefillWork.of_chunk(start, chunk + 1)) > 0.1
    assert cost.max_tokens(3000, 0.001) == 0


def test_a_machine_that_slows_down_is_noticed_within_a_few_steps() -> None:
    cost = learnt(range(0, 4000, 7))
    work = PrefillWork.of_chunk(3000, 8)
    for _ in range(6):
        cost.record(work, 1.5 * seconds_of(work))
    assert cost.predict(work) == pytest.approx(1.5 * seconds_of(work), rel=0.15)
    elsewhere = PrefillWork.of_chunk(100, 8)
    assert cost.predict(elsewhere) > 1.25 * seconds_of(elsewhere)


def test_a_machine_of_another_kind_is_learnt_though_single_steps_may_lie() -> None:
    cost = learnt(range(0, 4000, 7))
    work = PrefillWork.of_chunk(3000, 8)
    for _ in range(40):
        cost.record(work, 20 * seconds_of(work))
    assert cost.predict(work) == pytest.approx(20 * seconds_of(work), rel=0.2)


def test_steps_that_cost_nothing_are_no_reason_to_divide_by_nothing() -> None:
    cost = PrefillCost()
    cost.record(PrefillWork.of_chunk(0, 8), -0.001)
    assert cost.predict(PrefillWork.of_chunk(0, 8)) == 0.0
    assert cost.max_tokens(0, 0.1) > 100_000
