"""Mixed steps stay within their stretch of a decode step, on machines and in contexts of every kind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest

from engines.cpu.prefill_cost import PrefillWork
from engines.cpu.prefill_pacer import FIRST_CHUNK, SMALLEST_CHUNK, PrefillPacer

NOTHING = PrefillWork.of(())

Cost = Callable[[PrefillWork], float]
"""Seconds that a prefill adds to a step."""


def tokens_only(token_seconds: float) -> Cost:
    return lambda work: work.num_tokens * token_seconds


def with_attention(work: PrefillWork) -> float:
    """3 ms a token; 2,000 positions on as much again for each token, and once for the chunk."""
    return 0.003 * work.num_tokens + (work.num_pairs + work.num_positions) * 0.003 / 2000


def prompt(pacer: PrefillPacer, num_tokens: int, cost: Cost, *, decode: float, begin: int = 0) -> list[float]:
    """The stretch of each step until the prompt is in."""
    stretches, start = [], begin
    while start < begin + num_tokens:
        chunk = min(pacer.max_prefill_tokens(2, start), begin + num_tokens - start)
        work = PrefillWork.of_chunk(start, chunk)
        seconds = decode + cost(work)
        pacer.record(2, work, seconds)
        stretches.append(seconds / decode)
        start += chunk
    return stretches


def pacer_beside(decode: float, stretch: float = 2.5) -> PrefillPacer:
    pacer = PrefillPacer(stretch)
    for _ in range(20):
        pacer.record(2, NOTHING, decode)
    return pacer


@pytest.mark.parametrize("token_seconds", [0.0001, 0.001, 0.004])
@pytest.mark.parametrize("decode", [0.04, 0.4])
def test_a_mixed_step_takes_as_long_as_it_may(token_seconds: float, decode: float) -> None:
    stretches = prompt(pacer_beside(decode), 40_000, tokens_only(token_seconds), decode=decode)
    assert max(stretches) <= 2.5001
    assert min(stretches[12:-1]) > 2.2


def test_chunks_shrink_as_attention_grows() -> None:
    pacer = pacer_beside(0.04)
    stretches = prompt(pacer, 6000, with_attention, decode=0.04)
    assert max(stretches) <= 2.52
    assert min(stretches[10:-1]) > 2.1
    assert pacer.max_prefill_tokens(2, 0) >= 2 * pacer.max_prefill_tokens(2, 6000)


def test_the_next_prompts_beginning_is_foreseen() -> None:
    pacer = pacer_beside(0.04)
    prompt(pacer, 6000, with_attention, decode=0.04)
    stretches = prompt(pacer, 400, with_attention, decode=0.04)
    assert max(stretches) <= 2.52
    assert stretches[3] > 2.3


def test_a_prompt_that_goes_on_after_a_long_cached_prefix_is_foreseen() -> None:
    pacer = pacer_beside(0.04)
    prompt(pacer, 2000, with_attention, decode=0.04)
    stretches = prompt(pacer, 400, with_attention, decode=0.04, begin=5000)
    assert max(stretches) <= 2.6


def test_where_reading_the_context_takes_it_all_the_prompt_gets_on() -> None:
    pacer = pacer_beside(0.04)
    prompt(pacer, 1000, with_attention, decode=0.04, begin=100_000)
    assert pacer.max_prefill_tokens(2, 101_000) == SMALLEST_CHUNK


def test_steps_that_scatter_stay_within_the_stretch() -> None:
    pacer = pacer_beside(0.04)
    scatter = cycle((1.06, 0.94, 1.0, 0.95, 1.05))
    stretches = prompt(
        pacer, 4000, lambda work: (0.04 + with_attention(work)) * next(scatter) - 0.04, decode=0.04
    )
    late = sorted(stretches[60:])
    assert late[int(0.95 * len(late))] <= 2.5
    assert late[len(late) // 2] > 2.1


def test_a_step_that_was_held_up_changes_little() -> None:
    pacer = pacer_beside(0.04)
    prompt(pacer, 1000, tokens_only(0.003), decode=0.04)
    before = pacer.max_prefill_tokens(2, 1000)
    pacer.record(2, NOTHING, 0.4)
    assert pacer.max_prefill_tokens(2, 1000) == before
    pacer.record(2, PrefillWork.of_chunk(1000, 20), 30.0)
    assert pacer.max_prefill_tokens(2, 1020) >= before // 2
    prompt(pacer, 500, tokens_only(0.003), decode=0.04, begin=1020)
    assert pacer.max_prefill_tokens(2, 1520) >= before - 3


def test_a_chunk_is_at_most_twice_the_last() -> None:
    pacer = pacer_beside(0.04)
    chunks = []
    for _ in range(4):
        chunks.append(pacer.max_prefill_tokens(2, 0))
        pacer.record(2, PrefillWork.of_chunk(0, chunks[-1]), 0.04)
    assert chunks == [FIRST_CHUNK, 2 * FIRST_CHUNK, 4 * FIRST_CHUNK, 8 * FIRST_CHUNK]


def test_before_anything_is_timed_the_chunk_is_small() -> None:
    pacer = PrefillPacer(2.5)
    assert pacer.max_prefill_tokens(3, 0) == FIRST_CHUNK
    pacer.record(0, PrefillWork.of_chunk(0, 512), 1.0)
    assert pacer.max_prefill_tokens(3, 0) == FIRST_CHUNK
    pacer.record(2, NOTHING, 1.0)
    assert pacer.max_prefill_tokens(3, 0) == FIRST_CHUNK


def test_without_a_step_that_only_decodes_the_first_mixed_one_stands_for_it() -> None:
    pacer = PrefillPacer(2.5)
    stretches = prompt(pacer, 1000, tokens_only(0.003), decode=0.04)
    assert max(stretches) == pytest.approx(2.5 * (1 + 0.003 * FIRST_CHUNK / 0.04), abs=0.1)


def test_decode_steps_are_told_apart_by_their_number_of_sequences() -> None:
    pacer = PrefillPacer(2.0)
    pacer.record(1, NOTHING, 0.05)
    pacer.record(16, NOTHING, 0.3)
    for _ in range(12):
        work = PrefillWork.of_chunk(0, pacer.max_prefill_tokens(16, 0))
        pacer.record(16, work, 0.3 + 0.001 * work.num_tokens)
    assert pacer.max_prefill_tokens(2, 0) == pytest.approx(50, abs=1)
    assert pacer.max_prefill_tokens(12, 0) == pytest.approx(300, abs=1)


@pytest.mark.parametrize("stretch", [0.5, float("nan")])
def test_nothing_may_be_shorter_than_a_decode(stretch: float) -> None:
    with pytest.raises(ValueError, match=str(stretch)):
        PrefillPacer(stretch)
