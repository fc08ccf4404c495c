"""Which tokens may be drawn and how often: the uniform number is swept over the edges of all intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.cpu.token_draw import Draw, philox_uniform
from engines.request import SamplingParams
from tests.support.draw_by_sorting import exact_weights, kept_by_sorting, probabilities_of

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
TokenIds = NDArray[np.int64]

BELOW_ONE = float(np.nextafter(1.0, 0.0))
SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 513, 1024, 1025]


def make_logits(kind: str, size: int) -> Float32Array:
    """Rows without ties, with many, of one value only, and with -inf, also where blocks of a sum end."""
    rng = np.random.default_rng(size)
    logits = rng.permutation(np.linspace(-4.0, 0.0, size)).astype(np.float32)
    if kind == "steps":
        logits = np.round(logits * np.float32(2)) / np.float32(2)
    elif kind == "equal":
        logits[:] = -1.5
    elif kind == "masked":
        logits = np.round(logits * np.float32(8)) / np.float32(8)
        likeliest = int(logits.argmax())
        for masked in (slice(0, None, 3), slice(250, 262), slice(512, 769), slice(size - 1, None)):
            logits[masked] = -np.inf
        logits[likeliest] = 0.0
    return logits


def assert_draws(
    draw: Draw, logits: Float32Array, kept: TokenIds, shares: Float64Array, slack: float
) -> None:
    """Each kept token is drawn just inside both edges of its interval, which is as long as its share."""
    edges = np.concatenate([[0.0], np.cumsum(shares) / shares.sum()])
    assert np.diff(edges).min() > 3 * slack
    inside = np.stack([edges[:-1] + slack, edges[1:] - slack], axis=1)
    inside[0, 0], inside[-1, 1] = 0.0, BELOW_ONE
    drawn = [[draw.token(logits, float(uniform)) for uniform in pair] for pair in inside]
    assert drawn == [[token_id, token_id] for token_id in kept.tolist()]


def between(values: Float64Array, index: int) -> float:
    """Halfway from one of the distinct ascending `values` to the next, so that no rounding decides."""
    distinct = np.unique(values)
    index = min(index, distinct.size - 1)
    return float(distinct[index] if index == 0 else (distinct[index - 1] + distinct[index]) / 2)


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("kind", ["distinct", "steps", "equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_every_token_has_its_share(size: int, kind: str, temperature: float) -> None:
    logits = make_logits(kind, size)
    probabilities = probabilities_of(logits, temperature)
    params = SamplingParams(temperature=temperature)
    kept = np.flatnonzero(probabilities)
    assert_draws(Draw.of(params, size), logits, kept, probabilities[kept], 5e-7)


@pytest.mark.parametrize("kind", ["distinct", "steps", "equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_top_k_keeps_what_sorting_finds(size: int, kind: str) -> None:
    logits = make_logits(kind, size)
    probabilities = probabilities_of(logits, 1.0)
    for top_k in {1, 2, 3, 40, size // 2, size - 1, size, size + 1} - {0}:
        params = SamplingParams(temperature=1.0, top_k=top_k)
        kept = kept_by_sorting(logits, probabilities, params)
        assert_draws(Draw.of(params, size), logits, kept, probabilities[kept], 5e-7)


@pytest.mark.parametrize("kind", ["distinct", "steps", "equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_top_p_keeps_what_sorting_finds(size: int, kind: str) -> None:
    logits = make_logits(kind, size)
    probabilities = probabilities_of(logits, 1.0)
    sums = np.cumsum(-np.sort(-probabilities)) / probabilities.sum()
    for top_p in (1e-9, *(between(sums, place) for place in (1, 30, size // 2, size - 1))):
        params = SamplingParams(temperature=1.0, top_p=top_p)
        kept = kept_by_sorting(logits, probabilities, params)
        assert_draws(Draw.of(params, size), logits, kept, probabilities[kept], 5e-7)


@pytest.mark.parametrize("kind", ["distinct", "steps", "equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_min_p_keeps_what_sorting_finds(size: int, kind: str) -> None:
    logits = make_logits(kind, size)
    probabilities = probabilities_of(logits, 1.0)
    shares = np.append(probabilities, 1e-30)
    for min_p in {1.0, between(shares, 1), between(shares, size // 2), between(shares, size)}:
        kept = np.flatnonzero(probabilities >= min_p)
        draw = Draw.of(SamplingParams(temperature=1.0, min_p=min_p), size)
        assert_draws(draw, logits, kept, probabilities[kept], 5e-7)


@pytest.mark.parametrize("kind", ["distinct", "steps", "equal", "masked"])
@pytest.mark.parametrize("size", [17, 257, 1300])
def test_filters_act_one_after_the_other(size: int, kind: str) -> None:
    logits = make_logits(kind, size)
    temperature = 0.8
    probabilities = probabilities_of(logits, temperature)
    for top_k in (0, 7, size // 2):
        for share in (0.0, 0.4):
            min_p = between(np.append(probabilities, 1e-30), int(share * size)) if share else 0.0
            params = SamplingParams(temperature=temperature, top_k=top_k, min_p=min_p)
            head = -np.sort(-probabilities[kept_by_sorting(logits, probabilities, params)])
            params = replace(params, top_p=between(np.cumsum(head) / head.sum(), head.size // 3))
            kept = kept_by_sorting(logits, probabilities, params)
            assert_draws(Draw.of(params, size), logits, kept, probabilities[kept], 5e-7)


def test_min_p_keeps_a_token_at_the_very_distance() -> None:
    params = SamplingParams(temperature=1.0, min_p=0.25)
    at_edge = np.float32(Draw.of(params, 3).min_p_distance)
    logits = np.array([-np.nextafter(at_edge, np.float32(np.inf)), -at_edge, 0.0], np.float32)
    draw = Draw.of(params, 3)
    assert [draw.token(logits, uniform) for uniform in (0.0, 0.1, 0.3, BELOW_ONE)] == [1, 1, 2, 2]


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"min_p": 0.2}, {"top_k": 2, "min_p": 0.01}])
@pytest.mark.parametrize("size", [3, 19, 300])
def test_filters_leave_out_what_is_no_number(size: int, filters: dict[str, float]) -> None:
    logits = np.full(size, -3.0, np.float32)
    logits[[0, 2]] = 0.0, 1.0
    logits[1:2] = logits[3::5] = np.nan
    draw = Draw.of(SamplingParams(temperature=1.0, **filters), size)
    assert [draw.token(logits, uniform) for uniform in (0.0, 0.26, 0.28, BELOW_ONE)] == [0, 0, 2, 2]


@pytest.mark.parametrize("size", [4, 256, 1024, 5000])
def test_top_p_stops_at_a_sum_that_is_met_exactly(size: int) -> None:
    logits = np.zeros(size, np.float32)
    draw = Draw.of(SamplingParams(temperature=1.0, top_p=0.25), size)
    assert draw.token(logits, BELOW_ONE) == size // 4 - 1
    assert draw.token(logits, 0.5) == size // 8


def first_at_least(edge: float, total: float) -> float:
    """The least number whose product with `total`, rounded, is at least `edge`."""
    uniform = edge / total
    while uniform * total >= edge:
        uniform = math.nextafter(uniform, 0.0)
    while uniform * total < edge:
        uniform = math.nextafter(uniform, 1.0)
    return uniform


@settings(deadline=None, max_examples=100)
@given(
    size=st.sampled_from([*SIZES, 5003]),
    kind=st.sampled_from(["distinct", "steps", "equal", "masked"]),
    temperature=st.sampled_from([0.05, 0.3, 1.0, 50.0, 1e30]),
    top_k=st.sampled_from([0, 0, 1, 50, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.95, 1 - 1e-12]),
    seed=st.integers(0, 2**32),
)
def test_edges_are_exact(
    size: int, kind: str, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    """A token is drawn from the very number that reaches the sum of the weights before it, not below."""
    logits = make_logits(kind, size)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    weights = exact_weights(logits, temperature)
    kept = kept_by_sorting(logits, weights, params)
    ends = np.cumsum(weights[kept])
    draw = Draw.of(params, size)
    for place in np.random.default_rng(seed).integers(kept.size, size=30).tolist():
        begin = ends[place] - weights[kept[place]]
        uniform = first_at_least(float(begin), float(ends[-1])) if place > 0 else 0.0
        assert draw.token(logits, uniform) == kept[place]
        if place > 0:
            assert draw.token(logits, math.nextafter(uniform, 0.0)) == kept[place - 1]
    assert draw.token(logits, BELOW_ONE) == kept[-1]


@settings(deadline=None)
@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**64 - 1))
def test_uniform_draws_are_those_of_numpy(seed: int, position: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
    assert philox_uniform(seed, position) == generator.random()


def test_the_last_position_carries_into_the_counter() -> None:
    generator = np.random.Generator(np.random.Philox(key=3, counter=2**64 - 1))
    assert philox_uniform(3, 2**64 - 1) == generator.random()


def test_top_p_met_by_whole_bins_takes_nothing_of_the_next() -> None:
    logits = np.array([-3.0, 0.0, -1.0, 0.0, -2.0], np.float32)
    weights = exact_weights(logits, 1.0)
    top_p = first_at_least(float(weights[[1, 3]].sum()), float(weights.sum()))
    assert top_p * weights.sum() == weights[[1, 3]].sum()
    draw = Draw.of(SamplingParams(temperature=1.0, top_p=top_p), 5)
    assert [draw.token(logits, uniform) for uniform in (0.0, 0.4999, 0.5, BELOW_ONE)] == [1, 1, 3, 3]
    beyond = Draw.of(SamplingParams(temperature=1.0, top_p=top_p + 1e-9), 5)
    assert beyond.token(logits, 0.5) == 2
