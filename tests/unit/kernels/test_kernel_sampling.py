"""Rows of logits: the largest, and weights in place of probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from engines.cpu import _kernels
from engines.cpu.token_draw import NOT_FINITE, Draw, draw_tokens, likeliest_tokens, logits_peak
from engines.request import SamplingParams


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


@pytest.mark.parametrize("size", [1, 17, 4096, 4097, 32_000])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 16])
def test_the_likeliest_tokens_of_rows_are_their_peaks(
    isa: str, rng: np.random.Generator, num_rows: int, size: int
) -> None:
    logits = np.round(rng.standard_normal((num_rows, size)) * 2).astype(np.float32)
    assert likeliest_tokens(logits).tolist() == logits.argmax(axis=1).tolist()
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, size // 2, size - 1):
            broken = logits.copy()
            broken[num_rows // 2 :, place] = value
            expected = [*logits.argmax(axis=1)[: num_rows // 2], *[NOT_FINITE] * (num_rows - num_rows // 2)]
            assert likeliest_tokens(broken).tolist() == expected


def test_of_equal_logits_in_different_parts_of_a_row_the_first_is_the_likeliest(isa: str) -> None:
    logits = np.zeros((2, 20_000), np.float32)
    logits[0, [4_095, 4_096, 19_999]] = 1.0
    logits[1, [8_191, 12_288]] = 1.0
    assert likeliest_tokens(logits).tolist() == [4_095, 8_191]


def test_likeliest_tokens_needs_rows_of_logits() -> None:
    with pytest.raises(ValueError, match="there must be a logit"):
        likeliest_tokens(np.empty((2, 0), np.float32))
    with pytest.raises(ValueError, match="out must have an entry per row"):
        _kernels.likeliest_tokens(np.zeros((2, 5), np.float32), np.empty(1, np.int64))


def test_draws_of_several_rows_are_the_draws_of_each(isa: str, rng: np.random.Generator) -> None:
    params = [
        SamplingParams(temperature=0.7),
        SamplingParams(top_p=0.8),
        SamplingParams(top_k=40, top_p=0.9),
        SamplingParams(min_p=0.1),
    ]
    rows = (rng.standard_normal((13, 5_003)) * 3).astype(np.float32)
    draws = [(row, Draw.of(params[i % len(params)], row.size), rng.random()) for i, row in enumerate(rows)]
    drawn = draw_tokens(draws)
    assert drawn == [draw.token(row, uniform) for row, draw, uniform in draws]
    assert len(set(drawn)) > 5


def test_draws_need_their_arguments() -> None:
    row = np.zeros(5, np.float32)
    for arguments in (np.ones((2, 6)), np.ones((1, 5))):
        with pytest.raises(ValueError, match="arguments must have six columns and a row per draw"):
            _kernels.draw_tokens([row], arguments)
    with pytest.raises(ValueError, match="there must be a logit"):
        _kernels.draw_tokens([row[:0]], np.ones((1, 6)))
