"""GPTQ's arithmetic against plain linear algebra."""

from __future__ import annotations

import numpy as np
import pytest

from engines.fp4 import e2m1
from engines.quantize.error_compensation import compensate, factorize, shifted_target
from engines.quantize.weight_format import WeightGrid

COLUMNS = 320  # more than the block of columns, and than the size up to which triangles are inverted at once


def correlated_inputs(rows: int = 2000, columns: int = COLUMNS, seed: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    few = random.standard_normal((rows, columns // 4)) @ random.standard_normal((columns // 4, columns))
    x = few / np.sqrt(columns / 4) + 0.3 * random.standard_normal((rows, columns))
    return (x * np.exp(0.5 * random.standard_normal(columns))).astype(np.float32)


def random_weight(rows: int = 40) -> np.ndarray:
    return (0.05 * np.random.default_rng(6).standard_normal((rows, COLUMNS))).astype(np.float32)


def grid_of(weight: np.ndarray, format: str) -> WeightGrid:
    amax = np.float32(np.abs(weight).max())
    return WeightGrid.for_group(format, "compressed-tensors", amax, bfloat16_model=False, headroom=False)


def decode(codes: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    group = codes.shape[1] // multipliers.shape[1]
    return e2m1.decode(codes) * np.repeat(multipliers, group, axis=1)


def test_the_factor_is_that_of_the_damped_inverse():
    x = correlated_inputs()
    hessian = x.T @ x
    factor = factorize(hessian, damping=0.01)
    damped = hessian.astype(np.float64) + 0.01 * np.diagonal(hessian).mean() * np.eye(COLUMNS)
    permuted = damped[np.ix_(factor.order, factor.order)]
    upper = factor.upper.astype(np.float64)
    np.testing.assert_allclose(upper.T @ upper @ permuted, np.eye(COLUMNS), atol=2e-3)
    assert (np.tril(factor.upper, -1) == 0).all()
    assert (np.diff(np.diagonal(hessian)[factor.order]) <= 0).all()


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_without_correlation_it_is_plain_rounding(format):
    weight = random_weight()
    plain = grid_of(weight, format).quantize(weight)
    codes = compensate(weight, plain.multipliers, factorize(np.eye(COLUMNS, dtype=np.float32)))
    np.testing.assert_array_equal(codes, plain.codes)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_correlated_inputs_lose_much_less_than_by_rounding(format):
    x, weight = correlated_inputs(), random_weight()
    plain = grid_of(weight, format).quantize(weight)
    codes = compensate(weight, plain.multipliers, factorize(x.T @ x))
    fresh = correlated_inputs()[:500]
    rounded_loss = np.square(fresh @ (weight - plain.dequantized()).T).sum()
    compensated_loss = np.square(fresh @ (weight - decode(codes, plain.multipliers)).T).sum()
    assert compensated_loss < 0.5 * rounded_loss


def test_columns_are_quantised_under_the_scales_of_their_own_block():
    """Whatever the order of columns, each code times its block's scale is near the weight."""
    x, weight = correlated_inputs(), random_weight()
    weight[:, 16:32] *= 100
    plain = grid_of(weight, "nvfp4").quantize(weight)
    decoded = decode(compensate(weight, plain.multipliers, factorize(x.T @ x)), plain.multipliers)
    large = np.abs(decoded[:, 16:32]).mean() / np.abs(weight[:, 16:32]).mean()
    assert 0.8 < large < 1.2


def test_a_singular_hessian_is_damped_until_it_has_a_factor():
    x = correlated_inputs(rows=3)
    x[:, 7] = 0
    hessian = (x.T @ x) * np.float32(1e6)
    factor = factorize(hessian, damping=1e-12)
    assert np.isfinite(factor.upper).all()
    weight = random_weight()
    plain = grid_of(weight, "mxfp4").quantize(weight)
    codes = compensate(weight, plain.multipliers, factor)
    np.testing.assert_array_equal(codes[:, 7], plain.codes[:, 7])


def test_the_shifted_target_is_the_least_squares_fit():
    x = correlated_inputs(seed=8)
    y = x + np.float32(0.1) * correlated_inputs(seed=9)
    weight = random_weight()
    target = shifted_target(weight, (x - y).T @ y, factorize(y.T @ y, damping=1e-6))
    fit, *_ = np.linalg.lstsq(y.astype(np.float64), x.astype(np.float64) @ weight.T, rcond=None)
    np.testing.assert_allclose(target, fit.T, atol=2e-4)
    assert np.abs(fit.T - weight).max() > 0.01
