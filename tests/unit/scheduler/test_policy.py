"""Who is served when: decodes and prefills, admission, priority, preemption, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.errors import InvalidRequest, PromptTooLong
from engines.scheduler import Batch, Pace, Scheduler, SchedulerConfig, SequenceStatus
from tests.support.scheduler_simulation import FakeModel, run_step


def shape(batch: Batch) -> list[tuple[str, int, int, bool]]:
    return [(chunk.sequence.request_id, chunk.start, chunk.num_tokens, chunk.needs_logits) for chunk in batch]


def step(scheduler: Scheduler, pace: Pace | None = None) -> list[tuple[str, int, int, bool]]:
    """One step with token 7 for everybody; nobody is finished."""
    batch = scheduler.schedule(None, pace)
    scheduler.complete(batch, {chunk.sequence.request_id: (7,) for chunk in batch if chunk.needs_logits})
    scheduler.check_integrity()
    return shape(batch)


def test_a_long_prompt_is_computed_in_chunks_and_then_decoded(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    sequence = scheduler.add(make_request(10))
    assert step(scheduler) == [("r0", 0, 4, False)]
    assert step(scheduler) == [("r0", 4, 4, False)]
    assert sequence.num_generated_tokens == 0
    assert step(scheduler) == [("r0", 8, 2, True)]
    assert sequence.generated_token_ids == [7]
    assert step(scheduler) == [("r0", 10, 1, True)]
    assert sequence.generated_token_ids == [7, 7]
    assert sequence.num_computed_tokens == 11


def test_decodes_come_before_prefills_and_prefills_before_admissions(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request(2))
    step(scheduler)
    scheduler.add(make_request(10))
    scheduler.add(make_request(5))
    assert step(scheduler) == [("r0", 2, 1, True), ("r1", 0, 7, False)]
    assert step(scheduler) == [("r0", 3, 1, True), ("r1", 7, 3, True), ("r2", 0, 4, False)]
    assert step(scheduler) == [("r0", 4, 1, True), ("r1", 10, 1, True), ("r2", 4, 1, True)]


def test_prompts_are_paced_beside_decodes_only(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=12)
    paces: list[tuple[int, int]] = []

    def pace(num_decodes: int, start: int) -> int:
        paces.append((num_decodes, start))
        return 3

    scheduler.add(make_request(2))
    scheduler.add(make_request(2))
    assert step(scheduler, pace) == [("r0", 0, 2, True), ("r1", 0, 2, True)]
    scheduler.add(make_request(5))
    scheduler.add(make_request(5))
    assert step(scheduler, pace)[2:] == [("r2", 0, 3, False)]
    assert step(scheduler, pace)[2:] == [("r2", 3, 2, True), ("r3", 0, 1, False)]
    assert paces == [(2, 0), (2, 3)]


def test_the_pace_is_asked_from_where_the_first_prefill_goes_on(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=12)
    starts: list[int] = []

    def pace(num_decodes: int, start: int) -> int:
        starts.append(start)
        return 2

    shared = make_request(9, max_tokens=1)
    scheduler.add(make_request(2))
    scheduler.add(shared)
    step(scheduler)
    scheduler.abort(shared.request_id)
    step(scheduler, pace)
    assert starts == []  # nothing to prefill
    scheduler.add(replace(shared, request_id="late", priority=1))
    assert step(scheduler, pace)[1:] == [("late", 8, 1, True)]
    scheduler.add(make_request(7, priority=2))
    step(scheduler, pace)
    scheduler.add(make_request(5))
    assert step(scheduler, pace)[2:] == [("r3", 0, 2, False)]  # it ranks before the one that has begun
    assert starts == [8, 0, 0]


def test_drafts_do_not_pay_for_the_pace(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=12)
    scheduler.add(make_request(2, max_tokens=20))
    step(scheduler)
    batch = scheduler.schedule(lambda _, limit: [1] * limit, lambda *_: 1)
    assert batch.num_tokens == 12


def test_no_more_than_max_num_seqs_run(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    first, *_ = [scheduler.add(make_request(2)) for _ in range(3)]
    assert [entry[0] for entry in step(scheduler)] == ["r0", "r1"]
    assert (scheduler.stats.num_running, scheduler.stats.num_waiting) == (2, 1)
    scheduler.finish(first)
    assert [entry[0] for entry in step(scheduler)] == ["r1", "r2"]


def test_priority_then_arrival_decides_admission(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    sequences = {i: scheduler.add(make_request(2, priority=p)) for i, p in enumerate([1, 0, 1, 0])}
    order = []
    while scheduler.has_unfinished:
        (entry,) = step(scheduler)
        order.append(entry[0])
        scheduler.abort(entry[0])
    assert order == ["r1", "r3", "r0", "r2"]
    assert all(sequence.status is SequenceStatus.FINISHED for sequence in sequences.values())


def test_a_better_priority_takes_the_slot_of_a_worse_one_only(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=4, prefix_caching=False)
    low = scheduler.add(make_request(3, priority=1))
    step(scheduler)
    scheduler.add(make_request(3, priority=1))
    assert [entry[0] for entry in step(scheduler)] == ["r0"]
    high = scheduler.add(make_request(3, priority=0))
    assert step(scheduler) == [("r2", 0, 3, True)]
    assert low.status is SequenceStatus.WAITING
    assert low.num_preemptions == 1
    scheduler.finish(high)
    assert step(scheduler) == [("r0", 0, 4, False)]  # before r1, with its two generated tokens
    assert low.generated_token_ids == [7, 7]


def test_a_better_priority_gets_a_token_even_when_decodes_use_the_whole_budget(
    make_scheduler, make_request
) -> None:
    scheduler = make_scheduler(max_num_seqs=3, max_num_batched_tokens=3)
    for _ in range(3):
        scheduler.add(make_request(1, priority=1))
    assert len(step(scheduler)) == 3
    scheduler.add(make_request(4, priority=0))
    assert step(scheduler) == [("r0", 1, 1, True), ("r1", 1, 1, True), ("r3", 0, 1, False)]


def test_a_better_priority_prefills_before_a_running_prefill(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.add(make_request(12, priority=1))
    step(scheduler)
    scheduler.add(make_request(6, priority=0))
    assert step(scheduler) == [("r1", 0, 4, False)]
    assert step(scheduler) == [("r1", 4, 2, True), ("r0", 4, 2, False)]


def test_the_last_in_rank_is_preempted_and_recomputed_with_its_tokens(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, max_num_batched_tokens=8, prefix_caching=False)
    first = scheduler.add(make_request(3))
    second = scheduler.add(make_request(3))
    assert len(step(scheduler)) == 2
    assert len(step(scheduler)) == 2
    assert step(scheduler) == [("r0", 4, 1, True)]  # needs a third block: r1 gives up both of its own
    assert second.status is SequenceStatus.WAITING
    assert second.block_table == []
    assert second.generated_token_ids == [7, 7]
    assert scheduler.stats.num_preemptions_total == 1
    scheduler.finish(first)
    assert step(scheduler) == [("r1", 0, 5, True)]
    assert second.generated_token_ids == [7, 7, 7]


def test_the_last_in_rank_skips_the_step_rather_than_lose_its_blocks(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, max_num_batched_tokens=8, prefix_caching=False)
    first = scheduler.add(make_request(2))
    second = scheduler.add(make_request(3))
    assert len(step(scheduler)) == 2
    assert len(step(scheduler)) == 2
    assert (first.num_tokens, second.num_tokens) == (4, 5)
    assert step(scheduler) == [("r0", 3, 1, True)]  # r1 would need the fifth block
    assert second.status is SequenceStatus.RUNNING
    assert second.num_computed_tokens == 4
    scheduler.finish(first)
    assert step(scheduler) == [("r1", 4, 1, True)]


def test_admission_waits_for_blocks_that_running_sequences_still_need(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=6, block_size=4, max_num_batched_tokens=4)
    scheduler.add(make_request(15))  # 4 blocks, of which the first step fills one
    scheduler.add(make_request(9))  # 3 blocks
    scheduler.add(make_request(2))  # would fit, but is not before its turn
    assert step(scheduler) == [("r0", 0, 4, False)]
    while scheduler.get("r0").num_generated_tokens == 0:
        assert [entry[0] for entry in step(scheduler)] == ["r0"]
    assert (scheduler.stats.num_running, scheduler.stats.num_waiting) == (1, 2)


def test_admission_leaves_the_block_that_the_next_token_needs(make_scheduler, make_request) -> None:
    """A prompt of one block fits beside another, but either's next token would preempt it at once."""
    scheduler = make_scheduler(num_blocks=3, max_num_batched_tokens=8)
    first, second = scheduler.add(make_request(4)), scheduler.add(make_request(4))
    assert step(scheduler) == [("r0", 0, 4, True)]
    assert second.status is SequenceStatus.WAITING
    scheduler.finish(first)
    assert step(scheduler) == [("r1", 0, 4, True)]


def test_a_sequence_alone_can_grow_to_the_whole_pool_and_is_full_then(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4, max_model_len=1000)
    sequence = scheduler.add(make_request(11, max_tokens=500))
    assert not scheduler.is_full(sequence)
    step(scheduler)
    assert scheduler.is_full(sequence)
    assert sequence.num_tokens == 12


@pytest.mark.parametrize(
    ("num_blocks", "max_model_len", "prompt", "max_tokens"),
    [(3, 100, 12, 1), (9, 12, 12, 1), (3, 100, 13, 0)],
)
def test_a_prompt_that_can_never_fit_is_refused(
    make_scheduler, make_request, num_blocks: int, max_model_len: int, prompt: int, max_tokens: int
) -> None:
    scheduler = make_scheduler(num_blocks=num_blocks, block_size=4, max_model_len=max_model_len)
    with pytest.raises(PromptTooLong, match=rf"prompt has {prompt} tokens.*at most 12 tokens") as caught:
        scheduler.add(make_request(prompt, max_tokens=max_tokens))
    assert caught.value.param == "prompt"
    assert not scheduler.has_unfinished


def test_a_prompt_to_score_only_may_fill_the_pool(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    sequence = scheduler.add(make_request(12, max_tokens=0, num_prompt_logprobs=0))
    batch = scheduler.schedule()
    assert shape(batch) == [("r0", 0, 12, True)]
    scheduler.complete(batch, {})
    scheduler.finish(sequence)
    assert scheduler.stats.num_blocks_used == 0


def test_request_ids_in_flight_are_unique_and_reusable_afterwards(make_scheduler, make_request) -> None:
    scheduler = make_scheduler()
    request = make_request(3)
    scheduler.add(request)
    with pytest.raises(InvalidRequest, match="'r0' is already in use") as caught:
        scheduler.add(request)
    assert caught.value.param == "request_id"
    assert scheduler.abort("r0") is not None
    scheduler.add(request)


def test_an_empty_prompt_is_refused(make_scheduler, make_request) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        make_scheduler().add(make_request(()))


def test_abort_of_an_unknown_id_gives_none(make_scheduler) -> None:
    assert make_scheduler().abort("nobody") is None


def test_finish_twice_is_harmless(make_scheduler, make_request) -> None:
    scheduler = make_scheduler()
    sequence = scheduler.add(make_request(3))
    step(scheduler)
    scheduler.finish(sequence)
    scheduler.finish(sequence)
    scheduler.check_integrity()
    assert scheduler.stats.num_blocks_used == 0


def test_a_cached_prefix_is_reused_up_to_the_block_before_the_last_token(
    make_scheduler, make_request
) -> None:
    scheduler = make_scheduler(block_size=4)
    prompt = tuple(range(12))
    first = scheduler.add(make_request(prompt, max_tokens=1))
    step(scheduler)
    scheduler.finish(first)
    second = scheduler.add(make_request(prompt))
    assert step(scheduler) == [("r1", 8, 4, True)]  # the third block is cached too, but holds the last token
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    longer = scheduler.add(make_request((*prompt, 99)))
    assert step(scheduler)[-1] == ("r2", 12, 1, True)
    assert longer.block_table[:2] == second.block_table[:2]
    stats = scheduler.stats
    assert (stats.num_prompt_tokens_total, stats.num_cached_prompt_tokens_total) == (12 + 12 + 13, 8 + 12)


def test_blocks_shared_with_a_running_sequence_cost_nothing(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    prompt = tuple(range(13))
    scheduler.add(make_request(prompt))
    step(scheduler)
    scheduler.add(make_request((*prompt[:12], 99)))  # 3 blocks of r0's and the only free one
    assert step(scheduler) == [("r0", 13, 1, True), ("r1", 12, 1, True)]
    assert scheduler.stats.num_blocks_used == 5


def test_the_budget_of_a_preempted_sequence_goes_to_the_one_that_preempts(
    make_scheduler, make_request
) -> None:
    scheduler = make_scheduler(num_blocks=6, block_size=2, max_num_batched_tokens=4)
    scheduler.add(make_request(3, priority=1))
    step(scheduler)
    step(scheduler)
    scheduler.add(make_request(7, priority=0))
    assert step(scheduler) == [("r1", 0, 4, False)]  # r0's token had been planned before


def test_prompt_logprobs_need_every_row_so_nothing_is_reused(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=32)
    prompt = tuple(range(12))
    scheduler.add(make_request(prompt))
    step(scheduler)
    sequence = scheduler.add(make_request(prompt, num_prompt_logprobs=0))
    assert sequence.wants_prompt_logits
    assert step(scheduler)[-1] == ("r1", 0, 12, True)
    assert sequence.num_cached_tokens == 0
    assert not sequence.wants_prompt_logits


def test_generated_tokens_are_reused_by_the_next_turn(make_scheduler, make_request) -> None:
    scheduler = make_scheduler()
    model = FakeModel(16, 4)
    first = scheduler.add(make_request(5, max_tokens=8))
    while scheduler.has_unfinished:
        run_step(scheduler, model)
    second = scheduler.add(make_request((*first.token_ids, 1, 2, 3)))
    run_step(scheduler, model)
    assert second.num_cached_tokens == 12  # 13 tokens known, the last of them never computed


def test_the_context_end_may_not_be_overrun(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_model_len=4)
    scheduler.add(make_request(3))
    step(scheduler)
    batch = scheduler.schedule()
    with pytest.raises(AssertionError, match="grows beyond the context"):
        scheduler.complete(batch, {"r0": (7,)})


def test_a_sequence_left_without_a_token_is_named(make_scheduler, make_request) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(3))
    scheduler.complete(scheduler.schedule(), {})
    with pytest.raises(AssertionError, match="'r0' has nothing left to compute"):
        scheduler.schedule()


def test_a_token_in_mid_prompt_is_refused(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.add(make_request(9))
    batch = scheduler.schedule()
    with pytest.raises(AssertionError, match="mid-prompt"):
        scheduler.complete(batch, {"r0": (7,)})


def test_batches_are_completed_one_by_one(make_scheduler, make_request) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(3))
    batch = scheduler.schedule()
    with pytest.raises(AssertionError, match="before the previous batch was completed"):
        scheduler.schedule()
    scheduler.complete(batch, {"r0": (1,)})
    with pytest.raises(AssertionError, match="not the one in flight"):
        scheduler.complete(batch, {"r0": (1,)})


def test_scheduled_tokens_are_those_of_the_chunk(make_scheduler, make_request) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.add(make_request((5, 6, 7, 8, 9, 10)))
    step(scheduler)
    (chunk,) = scheduler.schedule()
    assert chunk.token_ids == [9, 10]
    assert chunk.end == 6


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens is 3; expected at least max_num_seqs, 4"):
        SchedulerConfig(8, 4, 4, 3, True, 32)
    with pytest.raises(ValueError, match="num_blocks is 0; expected at least 1"):
        SchedulerConfig(0, 4, 4, 8, True, 32)
