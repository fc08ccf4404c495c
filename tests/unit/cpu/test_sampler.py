"""The sampler against the definition of each filter, on distributions small enough to count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engines.cpu.logprobs import log_sum_exp, token_logprob
from engines.cpu.sampler import SequenceSampler
from engines.request import SamplingParams

VOCAB = 8
LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.08, 0.04, 0.02, 0.007, 0.003], np.float32))


def make(
    stop: frozenset[int] = frozenset(), prompt: tuple[int, ...] = (), **params: object
) -> SequenceSampler:
    return SequenceSampler(SamplingParams(**params), prompt, stop, VOCAB)


def draws(count: int, logits: np.ndarray = LOGITS, **params: object) -> Counter[int]:
    return Counter(make(seed=seed, **params).sample(logits) for seed in range(count))


def test_temperature_zero_is_the_argmax_and_ties_go_to_the_lower_id() -> None:
    assert make(temperature=0.0).sample(LOGITS[::-1].copy()) == 7
    assert make(temperature=0.0).sample(np.zeros(VOCAB, np.float32)) == 0


def test_frequencies_follow_the_distribution() -> None:
    counts = draws(4000)
    for token_id, probability in enumerate(np.exp(LOGITS).tolist()):
        assert counts[token_id] / 4000 == pytest.approx(probability, abs=4 * (probability / 4000) ** 0.5)


def test_temperature_sharpens() -> None:
    expected = 0.4**2 / float((np.exp(LOGITS) ** 2).sum())
    assert draws(2000, temperature=0.5)[0] / 2000 == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.5}, {0}),
        ({"logit_bias": {7: 100.0}}, {7}),
        ({"logit_bias": {0: -100.0, 1: -100.0}, "top_k": 1}, {2}),
    ],
)
def test_filters_keep_exactly_what_they_should(params: dict[str, object], kept: set[int]) -> None:
    assert set(draws(600, **params)) == kept


def test_top_k_breaks_ties_by_the_lower_id() -> None:
    assert set(draws(300, logits=np.zeros(VOCAB, np.float32), top_k=3)) == {0, 1, 2}


def test_the_draw_depends_on_seed_and_position_only() -> None:
    first, second = make(seed=11), make(seed=11)
    one = []
    for _ in range(20):
        one.append(first.sample(LOGITS))
        first.observe(one[-1])
    two = []
    for _ in range(20):
        second.sample(LOGITS)  # an extra look (as after a preemption) must not move the stream
        two.append(second.sample(LOGITS))
        second.observe(two[-1])
    assert one == two
    assert len(set(one)) > 1


def test_unseeded_sequences_differ() -> None:
    flat = np.zeros(VOCAB, np.float32)
    streams = {tuple(make().sample(flat) for _ in range(1)) for _ in range(64)}
    assert len(streams) > 1


def test_repetition_penalty_lowers_prompt_and_generated_tokens_of_either_sign() -> None:
    sampler = make(temperature=0.0, repetition_penalty=2.0, prompt=(1,))
    assert sampler.sample(np.array([1.0, 1.9, 0, 0, 0, 0, 0, 0], np.float32)) == 0
    assert sampler.sample(np.array([-1.0, -0.9, -2, -2, -2, -2, -2, -2], np.float32)) == 0
    sampler.observe(0)
    assert sampler.sample(np.array([1.9, 0, 1.0, 0, 0, 0, 0, 0], np.float32)) == 2


def test_frequency_and_presence_penalties_count_generated_tokens_only() -> None:
    sampler = make(temperature=0.0, frequency_penalty=0.4, prompt=(0, 0, 0))
    logits = np.array([1.0, 0.5, 0, 0, 0, 0, 0, 0], np.float32)
    assert sampler.sample(logits) == 0
    sampler.observe(0)
    assert sampler.sample(logits) == 0
    sampler.observe(0)
    assert sampler.sample(logits) == 1
    present = make(temperature=0.0, presence_penalty=0.6)
    present.observe(0)
    assert present.sample(logits) == 1


def test_stop_ids_are_withheld_until_min_tokens() -> None:
    sampler = make(temperature=0.0, min_tokens=2, stop=frozenset({0}))
    assert sampler.sample(LOGITS) == 1
    sampler.observe(1)
    assert sampler.sample(LOGITS) == 1
    sampler.observe(1)
    assert sampler.sample(LOGITS) == 0


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert make(temperature=1e-30, seed=1).sample(LOGITS * np.float32(1e4)) == 0


def test_logits_are_left_untouched() -> None:
    logits = LOGITS.copy()
    make(seed=3, top_k=2, repetition_penalty=1.5, prompt=(0,), logit_bias={1: 5.0}).sample(logits)
    assert np.array_equal(logits, LOGITS)


def test_log_probabilities_sum_to_one_and_rank_from_one() -> None:
    logits = LOGITS + np.float32(300.0)
    assert np.exp(logits - log_sum_exp(logits)).sum() == pytest.approx(1.0, abs=1e-12)
    entry = token_logprob(logits, 2, 3)
    assert entry.logprob == pytest.approx(np.log(0.15), abs=1e-4)
    assert (entry.token_id, entry.rank) == (2, 3)
    assert [token_id for token_id, _ in entry.top] == [0, 1, 2]
    assert entry.top[2][1] == entry.logprob
    assert token_logprob(logits, 0, 0).top == ()
    assert len(token_logprob(logits, 0, 99).top) == VOCAB


def test_the_likeliest_tokens_are_told_largest_first_and_ties_by_id() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0, -1.0], np.float32)
    assert [token_id for token_id, _ in token_logprob(logits, 0, 4).top] == [1, 3, 2, 4]
    assert token_logprob(logits, 4, 0).rank == 3
