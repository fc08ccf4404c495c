"""The sampler's tokens, filters, weights and draw together, are those that sorting everything would draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.cpu.sampler import SequenceSampler
from engines.cpu.token_draw import Draw, weight_bits
from engines.request import SamplingParams
from tests.support.draw_by_sorting import drawn_by_sorting, exact_weights, probabilities_of

Float32Array = NDArray[np.float32]


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
        expected = drawn_by_sorting(logits, params, sampler.uniform())
        assert sampler.sample(logits) == expected
        sampler.observe(expected)


@settings(deadline=None)
@given(logits=rows_of_logits(), temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_weights_are_whole_numbers_whose_sum_is_exact(logits: Float32Array, temperature: float) -> None:
    weights = exact_weights(logits, temperature)
    exact = sum(int(weight) for weight in weights)
    assert exact < 2**53
    assert float(weights.astype(np.float32).sum(dtype=np.float64)) == exact
    unit = 2.0 ** weight_bits(logits.size)
    assert np.allclose(weights / unit, probabilities_of(logits, temperature), rtol=2e-5, atol=1 / unit)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 1e-300])
def test_the_largest_logits_do_not_overflow(temperature: float, min_p: float) -> None:
    logits = np.array([-3e38, 3e38, -np.inf, 1e20], np.float32)
    params = SamplingParams(temperature=temperature, min_p=min_p, seed=1)
    assert SequenceSampler(params, (), frozenset(), 4).sample(logits) == 1


def test_the_largest_vocabulary_still_sums_exactly() -> None:
    size = 2**18 - 1
    weights = exact_weights(np.zeros(size, np.float32), 1.0)
    assert float(weights.sum()) == size * 2 ** weight_bits(size) < 2**53


def test_a_draw_never_falls_on_what_weighs_nothing() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[700, 300]] = 5.0
    for params in (SamplingParams(), SamplingParams(top_p=0.999), SamplingParams(top_k=900)):
        draw = Draw.of(params, 1000)
        assert draw.token(logits, 0.0) == 300
        assert draw.token(logits, np.nextafter(0.5, 0)) == 300
        assert draw.token(logits, 0.5) == 700
        assert draw.token(logits, np.nextafter(1.0, 0)) == 700
