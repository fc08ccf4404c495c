"""Random traffic on random small schedulers, against the tokens each request gets when it is alone."""

from __future__ import annotations

import random

import pytest

from engines.errors import PromptTooLong
from engines.request import GenerationRequest, SamplingParams
from engines.scheduler import Drafter, Scheduler, SchedulerConfig, Sequence
from tests.support.scheduler_simulation import FakeModel, next_token, run_step, tokens_alone


def random_config(rng: random.Random) -> SchedulerConfig:
    max_num_seqs = rng.randint(1, 8)
    return SchedulerConfig(
        num_blocks=rng.randint(2, 24),
        block_size=rng.choice([1, 2, 3, 4, 8]),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice([0, 1, 5, 20]),
        prefix_caching=rng.random() < 0.75,
        max_model_len=rng.randint(8, 60),
    )


class Traffic:
    """Random requests, many of which share a prefix; keeps what was added to compare in the end."""

    def __init__(self, rng: random.Random, scheduler: Scheduler) -> None:
        self.rng = rng
        self.scheduler = scheduler
        self.sequences: list[Sequence] = []
        self.aborted: set[str] = set()
        self.num_refused = 0
        self._stems = [tuple(rng.randrange(5) for _ in range(rng.randint(1, 30))) for _ in range(3)]

    def add(self) -> None:
        rng, number = self.rng, len(self.sequences) + self.num_refused
        stem = rng.choice(self._stems)
        prompt = stem[: rng.randint(1, len(stem))] + tuple(rng.randrange(3) for _ in range(rng.randint(0, 6)))
        if self.sequences and rng.random() < 0.15:  # a second turn of an earlier request
            prompt = tuple(rng.choice(self.sequences).token_ids)
        sampling = SamplingParams(
            max_tokens=rng.randint(1, 20), num_prompt_logprobs=0 if rng.random() < 0.1 else None
        )
        request = GenerationRequest(f"r{number}", prompt, sampling, rng.choice([0, 0, 0, 1, -1]))
        if len(prompt) + 1 > self.scheduler.config.max_sequence_len:
            with pytest.raises(PromptTooLong):
                self.scheduler.add(request)
            self.num_refused += 1
        else:
            self.sequences.append(self.scheduler.add(request))

    def abort_one(self) -> None:
        sequence = self.rng.choice(self.sequences)
        if not sequence.is_finished:
            assert self.scheduler.abort(sequence.request_id) is sequence
            self.aborted.add(sequence.request_id)

    def check_results(self) -> None:
        for sequence in self.sequences:
            expected = tokens_alone(sequence.request, self.scheduler.config.max_sequence_len)
            if sequence.request_id in self.aborted:
                expected = expected[: sequence.num_generated_tokens]
            assert sequence.generated_token_ids == expected


def step_and_check_progress(scheduler: Scheduler, model: FakeModel, live: list[Sequence]) -> None:
    """One step: within all limits, and the first in rank gets on."""
    first = min(live, key=lambda sequence: sequence.rank)
    batch = run_step(scheduler, model)
    config = scheduler.config
    assert batch.num_tokens == sum(chunk.num_tokens for chunk in batch) <= config.max_num_batched_tokens
    assert len(batch) <= config.max_num_seqs
    assert len({chunk.sequence.request_id for chunk in batch}) == len(batch)
    assert first in [chunk.sequence for chunk in batch]
    for chunk in batch:
        if chunk.sequence.wants_prompt_logits:
            assert chunk.sequence.num_cached_tokens == 0


@pytest.mark.parametrize("seed", range(60))
def test_every_sequence_gets_its_own_tokens_and_nothing_leaks(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(random_config(rng))
    model = FakeModel(scheduler.config.num_blocks, scheduler.config.block_size)
    traffic = Traffic(rng, scheduler)
    num_steps = 0
    for _ in range(120):
        for _ in range(rng.choice([0, 0, 0, 1, 1, 4])):
            traffic.add()
        if traffic.sequences and rng.random() < 0.05:
            traffic.abort_one()
        live = [sequence for sequence in traffic.sequences if not sequence.is_finished]
        if live:
            step_and_check_progress(scheduler, model, live)
            num_steps += 1
    while live := [sequence for sequence in traffic.sequences if not sequence.is_finished]:
        step_and_check_progress(scheduler, model, live)
        num_steps += 1
        assert num_steps < 10_000
    traffic.check_results()
    assert not scheduler.has_unfinished
    assert len(scheduler.schedule()) == 0
    stats = scheduler.stats
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)


def random_drafter(rng: random.Random) -> Drafter:
    """Guesses of which a part is true; sometimes more than asked for, sometimes none."""

    def draft(sequence: Sequence, limit: int) -> list[int]:
        assert limit >= 1
        assert sequence.num_generated_tokens >= 1
        tokens = list(sequence.token_ids)
        for _ in range(rng.choice([0, 1, 3, limit, limit + 2])):
            tokens.append(next_token(tokens) if rng.random() < 0.8 else 4711)
        return tokens[sequence.num_tokens :]

    return draft


@pytest.mark.parametrize("seed", range(60))
def test_drafts_change_no_token_and_leak_no_block(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(random_config(rng))
    model = FakeModel(scheduler.config.num_blocks, scheduler.config.block_size)
    traffic = Traffic(rng, scheduler)
    drafter = random_drafter(rng)
    for step in range(4000):
        if step < 60 and rng.random() < 0.6:
            traffic.add()
        if not scheduler.has_unfinished:
            if step >= 60:
                break
            continue
        batch = run_step(scheduler, model, drafter)
        assert batch.num_tokens <= scheduler.config.max_num_batched_tokens
    traffic.check_results()
    assert not scheduler.has_unfinished
    assert scheduler.stats.num_blocks_used == 0


def test_true_drafts_save_steps_and_a_wrong_one_ends_the_run() -> None:
    config = SchedulerConfig(8, 4, 1, 16, prefix_caching=True, max_model_len=32)
    request = GenerationRequest("r", (1, 2, 3), SamplingParams(max_tokens=9))
    expected = tokens_alone(request, 32)
    scheduler, model = Scheduler(config), FakeModel(8, 4)
    sequence = scheduler.add(request)
    run_step(scheduler, model)
    run_step(scheduler, model, lambda _, limit: [*expected[1:4], 4711, expected[5]][:limit])
    assert sequence.generated_token_ids == expected[:5]
    assert sequence.num_computed_tokens == 3 + 4
    run_step(scheduler, model, lambda _, limit: expected[5:][:limit])
    assert sequence.is_finished
    assert sequence.generated_token_ids == expected


@pytest.mark.parametrize("seed", range(20))
def test_aborts_while_a_batch_is_in_flight(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(random_config(rng))
    model = FakeModel(scheduler.config.num_blocks, scheduler.config.block_size)
    traffic = Traffic(rng, scheduler)
    for _ in range(60):
        traffic.add()
        if not scheduler.has_unfinished:
            continue
        batch = scheduler.schedule()
        sampled = model.step(batch)
        if rng.random() < 0.5:
            traffic.abort_one()
            traffic.add()
        scheduler.complete(batch, sampled)
        scheduler.check_integrity()
        for chunk in batch:
            done = chunk.sequence.num_generated_tokens >= chunk.sequence.request.sampling.max_tokens
            if done or scheduler.is_full(chunk.sequence):
                scheduler.finish(chunk.sequence)
    while scheduler.has_unfinished:
        run_step(scheduler, model)
    traffic.check_results()
    assert scheduler.stats.num_blocks_used == 0


def test_the_simulation_covers_what_it_is_for() -> None:
    """Preemption and reuse happen in it; otherwise it would prove little."""
    num_preemptions = num_cached_tokens = 0
    for seed in range(10):
        rng = random.Random(seed)
        scheduler = Scheduler(random_config(rng))
        model = FakeModel(scheduler.config.num_blocks, scheduler.config.block_size)
        traffic = Traffic(rng, scheduler)
        for _ in range(40):
            traffic.add()
        while scheduler.has_unfinished:
            run_step(scheduler, model)
        num_preemptions += scheduler.stats.num_preemptions_total
        num_cached_tokens += scheduler.stats.num_cached_prompt_tokens_total
    assert num_preemptions > 20
    assert num_cached_tokens > 100


def test_the_fake_model_depends_on_every_token() -> None:
    assert next_token([1, 2, 3]) != next_token([0, 2, 3])
    assert next_token([1, 2, 3]) == next_token([1, 2, 3])
