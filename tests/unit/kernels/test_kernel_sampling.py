"""Rows of logits: the largest, and weights in place of probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from engines.cpu import _kernels
from engines.cpu.token_draw import logits_peak


def test_weights_are_whole_numbers_near_exp(isa: str) -> None:
    logits = np.linspace(-90, 0, 20_003, dtype=np.float32)
    logits[[0, 7]] = -np.inf
    weights = np.empty_like(logits)
    _kernels.token_weights(logits, 0.0, 1.0, 2.0**38, weights)
    expected = np.rint(np.exp(logits.astype(np.float64)) * 2.0**38)
    assert np.allclose(weights, expected, rtol=2.0**-23, atol=1)
    assert weights[[0, 7]].tolist() == [0, 0]
    assert weights[-1] == 2.0**38
    assert (weights == np.rint(weights)).all()


@pytest.mark.parametrize("size", [1, 15, 511, 512, 513, 1024, 32_000])
def test_the_peak_is_the_first_largest_and_knows_what_is_not_finite(
    isa: str, rng: np.random.Generator, size: int
) -> None:
    logits = np.round(rng.standard_normal(size) * 2).astype(np.float32)
    assert logits_peak(logits) == (logits.argmax(), logits.max(), True)
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, size // 2, size - 1):
            broken = logits.copy()
            broken[place] = value
            assert logits_peak(broken).all_finite is False
    close = np.full(size, np.nextafter(np.float32(3), np.float32(0)))
    close[size // 2] = 3.0
    assert logits_peak(close) == (size // 2, 3.0, True)
    masked = np.full(size, -np.inf, np.float32)
    masked[size - 1] = -3.0
    assert logits_peak(masked).token_id == size - 1
