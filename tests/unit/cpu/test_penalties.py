"""Penalties touch few logits, against their definition over the whole vocabulary."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.cpu.penalties import TokenPenalties
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]


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
