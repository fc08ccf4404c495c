"""Filters and draws that sort no vocabulary, against the definitions that sort all of it; penalties too."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.cpu.candidates import Draw, weight_bits, weights_of
from engines.cpu.penalties import TokenPenalties
from engines.cpu.sampler import SequenceSampler
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]


def ranked(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices from the largest value to the smallest, equal ones by index."""
    return np.argsort(-values, kind="stable")


def by_sorting(logits: Float32Array, params: SamplingParams, uniform: float) -> int:
    """What is drawn, by the filters' definitions."""
    maximum, ids = logits.max(), np.arange(logits.size)
    if params.min_p > 0:
        distance = min(-params.temperature * math.log(params.min_p), 3e38)
        ids = ids[maximum - logits <= np.float32(distance)]
    if params.top_k > 0:
        ids = np.sort(ids[ranked(logits[ids])[: params.top_k]])
    weights = weights_of(logits[ids], maximum, params.temperature, weight_bits(logits.size)).astype(
        np.float64
    )
    if params.top_p < 1:
        order = ranked(weights)
        reached = np.cumsum(weights[order]) >= params.top_p * weights.sum()
        kept = np.sort(order[: int(reached.argmax()) + 1])
        ids, weights = ids[kept], weights[kept]
    return int(ids[np.flatnonzero(np.cumsum(weights) > uniform * weights.sum())[0]])


@st.composite
def rows_of_logits(draw: st.DrawFn) -> Float32Array:
    """Flat, steep and stepped distributions (many ties), of few tokens or more than the head and a block."""
    size = draw(st.sampled_from([1, 2, 7, 255, 256, 257, 1024, 1025, 3000, 5003]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.01, 1.0, 4.0, 30.0]))
    if draw(st.booleans()):
        logits = np.round(logits * 2) / 2
    if draw(st.booleans()):
        logits[rng.random(size) < 0.5] = -np.inf
        logits[rng.integers(size)] = 1.0
    return logits.astype(np.float32)


filters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-300, 1e-3, 0.3, 0.7, 1.0, 2.0, 50.0, 1e30, 1e300]),
    top_k=st.sampled_from([0, 0, 1, 2, 50, 1000, 4000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-12]),
    min_p=st.sampled_from([0.0, 0.0, 1e-300, 1e-9, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(deadline=None, max_examples=400)
@given(logits=rows_of_logits(), params=filters)
def test_the_sampler_draws_what_sorting_everything_would(
    logits: Float32Array, params: SamplingParams
) -> None:
    sampler = SequenceSampler(params, (), frozenset(), logits.size)
    for _ in range(4):
        expected = by_sorting(logits, params, sampler.uniform())
        assert sampler.sample(logits) == expected
        sampler.observe(expected)


@settings(deadline=None)
@given(logits=rows_of_logits(), temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_weights_are_whole_numbers_whose_sum_is_exact(logits: Float32Array, temperature: float) -> None:
    num_bits = weight_bits(logits.size)
    weights = weights_of(logits, logits.max(), temperature, num_bits)
    exact = sum(int(weight) for weight in weights)
    assert exact < 2**53
    assert float(weights.sum(dtype=np.float64)) == exact
    expected = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    assert np.allclose(weights / 2.0**num_bits, expected, rtol=2e-5, atol=2.0**-num_bits)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 1e-300])
def test_the_largest_logits_do_not_overflow(temperature: float, min_p: float) -> None:
    logits = np.array([-3e38, 3e38, -np.inf, 1e20], np.float32)
    params = SamplingParams(temperature=temperature, min_p=min_p, seed=1)
    assert SequenceSampler(params, (), frozenset(), 4).sample(logits) == 1


def test_the_largest_vocabulary_still_sums_exactly() -> None:
    size = 2**18 - 1
    weights = weights_of(np.zeros(size, np.float32), np.float32(0), 1.0, weight_bits(size))
    assert float(weights.sum(dtype=np.float64)) == size * 2 ** weight_bits(size) < 2**53


def test_a_draw_never_falls_on_what_weighs_nothing() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[700, 300]] = 5.0
    for params in (SamplingParams(), SamplingParams(top_p=0.999), SamplingParams(top_k=900)):
        draw = Draw.of(params, 1000)
        assert draw.token(logits, 0.0) == 300
        assert draw.token(logits, np.nextafter(0.5, 0)) == 300
        assert draw.token(logits, 0.5) == 700
        assert draw.token(logits, np.nextafter(1.0, 0)) == 700


def dense_penalties(
    logits: Float32Array, params: SamplingParams, prompt: list[int], out: list[int]
) -> Float32Array:
    """The definition, over the whole vocabulary."""
    counts = np.array([Counter(out)[token_id] for token_id in range(logits.size)])
    seen = (counts > 0) | np.isin(np.arange(logits.size), prompt)
    factor = np.float32(params.repetition_penalty)
    repeated = np.where(logits > 0, logits / factor, logits * factor)
    result = np.where(seen, repeated, logits) - np.float32(params.frequency_penalty) * counts
    return result.astype(np.float32) - np.float32(params.presence_penalty) * (counts > 0)


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, 299), max_size=150),
    out=st.lists(st.integers(0, 299), max_size=150),
    repetition=st.sampled_from([1.0, 1.3, 0.5]),
    frequency=st.sampled_from([0.0, 0.7, -1.1]),
    presence=st.sampled_from([0.0, 0.4]),
)
def test_penalties_touch_what_has_been_seen_and_nothing_else(
    prompt: list[int], out: list[int], repetition: float, frequency: float, presence: float
) -> None:
    params = SamplingParams(
        repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
    )
    logits = np.random.default_rng(len(prompt)).standard_normal(300).astype(np.float32)
    penalties = TokenPenalties(params, prompt)
    for token_id in out:
        penalties.observe(token_id)
    lowered = logits.copy()
    penalties.apply(lowered)
    assert np.array_equal(lowered, dense_penalties(logits, params, prompt, out))


@pytest.mark.parametrize(
    ("params", "are_wanted"),
    [
        ({}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"frequency_penalty": -0.1}, True),
        ({"presence_penalty": 1}, True),
    ],
)
def test_penalties_are_kept_only_for_those_who_ask(params: dict[str, float], are_wanted: bool) -> None:
    assert TokenPenalties.are_wanted(SamplingParams(**params)) is are_wanted


def test_penalties_have_room_for_any_number_of_tokens() -> None:
    params = SamplingParams(presence_penalty=0.5)
    penalties = TokenPenalties(params, [0])
    for token_id in range(300):
        penalties.observe(token_id)
    lowered = np.ones(301, np.float32)
    penalties.apply(lowered)
    assert lowered.tolist() == [0.5] * 300 + [1.0]
