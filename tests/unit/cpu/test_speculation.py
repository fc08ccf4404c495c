"""Guessing from the text, and the account that keeps guessing from costing more than its credit."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engines.cpu.speculation.ledger import CREDIT_SHARE, SAVED_STEPS, SpeculationLedger
from engines.cpu.speculation.prompt_lookup import PromptLookup
from engines.cpu.speculation.speculator import Speculator
from engines.request import GenerationRequest, SamplingParams
from engines.scheduler import Scheduler, SchedulerConfig, Sequence


@pytest.mark.parametrize(
    ("token_ids", "limit", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 3, [3, 4, 1]),
        ([1, 2, 3, 4, 1, 2], 1, [3]),
        ([1, 2, 9, 1, 2, 7, 1, 2], 2, [7, 1]),  # the latest place
        ([5, 1, 2, 3, 8, 6, 1, 2, 3, 9, 5, 1, 2, 3], 2, [8, 6]),  # the longest match wins over the latest
        ([7, 7, 7], 4, [7, 7, 7, 7]),  # a loop goes on
        ([1, 2, 1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),
        ([1, 2, 3, 4], 3, []),
        ([1], 3, []),
        ([3, 3], 3, []),  # one token is no evidence
    ],
)
def test_what_followed_the_same_tokens(token_ids: list[int], limit: int, expected: list[int]) -> None:
    assert PromptLookup().propose(token_ids, limit) == expected


def test_an_index_that_grew_finds_what_a_new_one_finds() -> None:
    rng = random.Random(0)
    token_ids: list[int] = []
    grown = PromptLookup()
    for _ in range(400):
        token_ids += [rng.randrange(4) for _ in range(rng.randint(1, 3))]
        assert grown.propose(token_ids, 5) == PromptLookup().propose(token_ids, 5)


def decode_seconds(num_rows: int, num_sequences: int, row_cost: float) -> float:
    """A step of a machine on which a row beyond the first costs `row_cost` of a step."""
    return 0.1 * (1 + row_cost * (num_rows - 1))


class Machine:
    """Decodes one sequence of random text, of which a share of the drafts comes true."""

    def __init__(self, row_cost: float, chance: Callable[[int], float]) -> None:
        self.rng = random.Random(1)
        self.row_cost = row_cost
        self.chance = chance
        self.speculator = Speculator()
        self.seconds = 0.0
        self.num_tokens = 0

    def run(self, num_tokens: int) -> float:
        """Seconds of `num_tokens` tokens over what they take without speculation."""
        config = SchedulerConfig(1024, 16, 1, 64, prefix_caching=False, max_model_len=16_000)
        scheduler = Scheduler(config)
        sampling = SamplingParams(max_tokens=num_tokens)
        scheduler.add(GenerationRequest("r", (1, 2) * 8, sampling))
        scheduler.complete(scheduler.schedule(), {"r": (1,)})
        while self.num_tokens < num_tokens:
            self.step(scheduler)
        self.speculator.forget("r")
        return self.seconds / (decode_seconds(1, 1, self.row_cost) * self.num_tokens)

    def step(self, scheduler: Scheduler) -> None:
        self.speculator.begin_step(1)
        batch = scheduler.schedule(self.speculator.draft)
        (chunk,) = batch
        tokens: list[int] = []
        for draft in chunk.draft_token_ids:
            if self.rng.random() >= self.chance(self.num_tokens):
                break
            tokens.append(draft)
        tokens.append(self.rng.randrange(2))  # two words only: there is always something to guess
        scheduler.complete(batch, {"r": tokens})
        seconds = decode_seconds(chunk.num_tokens, 1, self.row_cost)
        self.speculator.end_step(batch, {"r": tuple(tokens)}, seconds)
        self.seconds += seconds
        self.num_tokens += len(tokens)


@pytest.mark.parametrize("row_cost", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
def test_it_never_loses_more_than_two_percent(row_cost: float, chance: float) -> None:
    assert Machine(row_cost, lambda _: chance).run(3000) < 1.02


def test_it_never_loses_more_when_luck_turns() -> None:
    turned = Machine(0.8, lambda num_tokens: 0.95 if num_tokens < 400 else 0.0)
    turned.run(400)
    before, num_before = turned.seconds, turned.num_tokens
    turned.run(4000)
    plain = decode_seconds(1, 1, 0.8) * (turned.num_tokens - num_before)
    assert turned.seconds - before < 1.02 * plain


def test_it_wins_where_rows_are_cheap_and_guesses_come_true() -> None:
    assert Machine(0.05, lambda _: 0.9).run(2000) < 0.4


def saved_up(num_sequences: int) -> SpeculationLedger:
    """Plain steps of 1 s each until the account is full."""
    ledger = SpeculationLedger()
    for _ in range(1000):
        ledger.record(num_sequences, 0, 0, 1.0)
    return ledger


def test_a_number_of_sequences_is_timed_without_drafts_first() -> None:
    assert SpeculationLedger().num_drafts_allowed(1) == 0
    ledger = saved_up(1)
    assert ledger.num_drafts_allowed(1) == SAVED_STEPS
    assert ledger.num_drafts_allowed(2) == 0


def test_the_account_can_bear_the_loss_of_the_step() -> None:
    ledger = saved_up(4)
    # Until one has been timed, a draft is taken to cost a quarter of a step of four.
    assert ledger.num_drafts_allowed(4) == SAVED_STEPS * 4
    ledger.record(4, 4, 0, 3.0)
    assert ledger.balance_seconds == pytest.approx(SAVED_STEPS - 2.0 + CREDIT_SHARE * 3.0)
    assert ledger.num_drafts_allowed(4) == int(ledger.balance_seconds / 0.5)
    ledger.record(4, 4, 0, 5.0)
    assert ledger.num_drafts_allowed(4) == 0


def test_drafts_that_come_true_are_paid_back_but_not_saved_without_bound() -> None:
    ledger = saved_up(1)
    ledger.record(1, 4, 0, 3.0)
    ledger.record(1, 4, 1, 1.5)
    assert ledger.balance_seconds == pytest.approx(SAVED_STEPS - 2.0 + 1.0 - 0.5 + CREDIT_SHARE * 4.5)
    for _ in range(20):
        ledger.record(1, 4, 4, 1.0)
    assert ledger.balance_seconds == pytest.approx(SAVED_STEPS)


def test_a_plain_step_is_timed_again_now_and_then() -> None:
    ledger = saved_up(1)
    for _ in range(63):
        ledger.record(1, 1, 1, 1.0)
        assert ledger.num_drafts_allowed(1) > 0
    ledger.record(1, 1, 1, 1.0)
    assert ledger.num_drafts_allowed(1) == 0
    ledger.record(1, 0, 0, 1.0)
    assert ledger.num_drafts_allowed(1) > 0


def test_a_finished_sequence_is_forgotten() -> None:
    speculator = Speculator()
    speculator.ledger = saved_up(1)
    speculator.ledger.record(1, 4, 4, 1.0)
    sequence = Sequence(GenerationRequest("r", (1, 2, 3, 1, 2)), arrival=0)
    speculator.begin_step(1)
    assert speculator.draft(sequence, 2) == [3, 1]
    speculator.forget("r")
    speculator.forget("r")
    assert speculator.draft(sequence, 1) == [3]
