"""The screen of a head finds the tokens that all logits would give, for any weights and rows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels
from engines.cpu.token_draw import NOT_FINITE, likeliest_tokens
from engines.cpu.weights import DenseWeight, HeadScreen

Float32Array = NDArray[np.float32]

SHAPES = [(1, 2), (16, 128), (17, 130), (40, 64), (95, 386), (1003, 256)]


def elements(weights: Float32Array, dtype: str) -> NDArray[np.generic]:
    """The weights as a checkpoint has them; bfloat16 as its bits."""
    if dtype == "bfloat16":
        return weights.astype(ml_dtypes.bfloat16).view(np.uint16)
    return weights.astype(dtype)


def screened(x: Float32Array, head: DenseWeight) -> NDArray[np.int64]:
    out = np.full(len(x), -7, np.int64)
    HeadScreen(head).likeliest(x, out)
    return out


def by_all_logits(x: Float32Array, head: DenseWeight) -> NDArray[np.int64]:
    logits = np.empty((len(x), head.num_rows), np.float32)
    kernels.dense_linear(x, head, logits)
    return likeliest_tokens(logits)


@pytest.fixture(params=[name for name in kernels.available_isas() if name not in ("plain", "avx2")])
def screening_isa(request: pytest.FixtureRequest, isa_restored: None) -> str:
    kernels.set_isa(request.param)
    return str(request.param)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("num_outputs", "num_columns"), SHAPES)
def test_tokens_are_those_of_all_logits(
    screening_isa: str, rng: np.random.Generator, num_outputs: int, num_columns: int, dtype: str
) -> None:
    weights = rng.standard_normal((num_outputs, num_columns), np.float32)
    head = DenseWeight(elements(weights, dtype))
    for num_rows in (1, 2, 11, 12, 13, 16, 25, 67):
        x = rng.standard_normal((num_rows, num_columns), np.float32)
        x *= 10.0 ** rng.uniform(-3, 3, (num_rows, 1)).astype(np.float32)
        assert (screened(x, head) == by_all_logits(x, head)).all()


def test_outputs_that_lie_closer_than_the_bounds_are_told_apart(
    screening_isa: str, rng: np.random.Generator
) -> None:
    """A thousand outputs within an int8 step of each other; of copies of the largest the first counts."""
    base = rng.standard_normal(512, np.float32)
    weights = base + 2.0**-12 * rng.standard_normal((1000, 512), np.float32)
    weights[[900, 77, 400]] = weights[123]
    head = DenseWeight(weights)
    x = base + 3 * rng.standard_normal((40, 512), np.float32)
    expected = by_all_logits(x, head)
    assert len(set(expected)) > 10
    assert (screened(x, head) == expected).all()
    x[:] = weights[123]
    x[:] *= 1 + np.arange(40, dtype=np.float32)[:, None]
    weights[123] *= 1.5
    weights[[900, 77, 400]] = weights[123]
    assert (screened(x, DenseWeight(weights)) == 77).all()


def test_weights_rounded_the_worst_way_are_still_within_the_bound(screening_isa: str) -> None:
    """The larger output is rounded down in every column, below another that int8 holds exactly."""
    weights = np.zeros((40, 2048), np.float32)
    weights[37] = 50.48
    weights[3] = np.where(np.arange(2048) % 20 < 9, 51, 50)  # 50.45 in the mean
    weights[[3, 37], 0] = 127.0  # makes the scale 1
    x = np.ones((1, 2048), np.float32)
    x[0, 0] = 0.0
    head = DenseWeight(weights)
    assert by_all_logits(x, head) == [37]
    assert screened(x, head) == [37]


@pytest.mark.parametrize("level", [100, 156])
def test_rows_rounded_the_worst_way_are_still_within_the_bound(screening_isa: str, level: int) -> None:
    """The larger output reads columns that are rounded down, the other those that 16 bits hold exactly."""
    half = 1024
    x = np.zeros((1, 2 * half + 2), np.float32)
    x[0, :half] = level + 0.49
    x[0, half:-2] = np.where(np.arange(half) % 20 < 9, level + 1, level)  # 0.45 in the mean
    x[0, -2] = 20000.0  # makes the step 1; of no weight
    weights = np.zeros((40, x.shape[1]), np.float32)
    weights[37, :half] = 1.0
    weights[3, half:-2] = 1.0
    weights[3, -1] = 127 / 64  # another scale; times 0
    head = DenseWeight(weights)
    assert by_all_logits(x, head) == [37]
    assert screened(x, head) == [37]


def test_of_equal_outputs_the_first_is_taken_whichever_is_found_first(screening_isa: str) -> None:
    """The first one's weights say less: those that the row leaves out are large."""
    weights = np.zeros((80, 128), np.float32)
    weights[[5, 70]] = np.linspace(1, 2, 128, dtype=np.float32)
    weights[5, 64:] = 1000.0
    x = np.zeros((1, 128), np.float32)
    x[0, :64] = 1.0
    head = DenseWeight(weights)
    assert by_all_logits(x, head) == [5]
    assert screened(x, head) == [5]


@pytest.mark.parametrize("outlier", [1e4, 1e-4])
def test_outliers_in_rows_and_weights_cost_time_not_tokens(
    screening_isa: str, rng: np.random.Generator, outlier: float
) -> None:
    weights = rng.standard_normal((300, 256), np.float32)
    weights[::7, 3] *= outlier
    weights[5] = 0.0
    x = rng.standard_normal((30, 256), np.float32)
    x[::2, 3] *= outlier
    x[1::4, 200] *= outlier
    head = DenseWeight(weights)
    assert (screened(x, head) == by_all_logits(x, head)).all()


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e-15, 1e15, 1e18, 1e19])
@pytest.mark.parametrize("weight_scale", [0.0, 1e-30, 1.0, 1e18])
def test_magnitudes_beyond_the_bounds_reach(
    screening_isa: str, rng: np.random.Generator, scale: float, weight_scale: float
) -> None:
    """Rows of zeros, subnormals, and products that overflow: as all logits have it."""
    head = DenseWeight(np.float32(weight_scale) * rng.standard_normal((70, 64), np.float32))
    x = np.float32(scale) * rng.standard_normal((3, 64), np.float32)
    assert (screened(x, head) == by_all_logits(x, head)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_reported(screening_isa: str, rng: np.random.Generator, bad: float) -> None:
    weights = rng.standard_normal((70, 64), np.float32)
    x = rng.standard_normal((4, 64), np.float32)
    x[2, 40] = bad
    head = DenseWeight(weights)
    expected = by_all_logits(x, head)
    assert (expected == NOT_FINITE).tolist() == [False, False, True, False]
    assert (screened(x, head) == expected).all()
    weights[69, 0] = bad
    assert (screened(x, DenseWeight(weights)) == NOT_FINITE).all()


def test_tokens_do_not_depend_on_threads(
    screening_isa: str, rng: np.random.Generator, restore_threads: None
) -> None:
    head = DenseWeight(rng.standard_normal((3000, 128), np.float32))
    x = rng.standard_normal((20, 128), np.float32)
    expected = by_all_logits(x, head)
    for num_threads in (1, 2, 5):
        kernels.set_num_threads(num_threads)
        assert (screened(x, head) == expected).all()


def test_its_size_is_known_beforehand(screening_isa: str, rng: np.random.Generator) -> None:
    for num_outputs, num_columns in SHAPES:
        head = DenseWeight(rng.standard_normal((num_outputs, num_columns), np.float32))
        assert HeadScreen(head).num_bytes == HeadScreen.bytes_of(num_outputs, num_columns)


@pytest.mark.parametrize("num_columns", [3, 65538])
def test_a_head_that_does_not_fit_is_refused(screening_isa: str, num_columns: int) -> None:
    assert not HeadScreen.fits(num_columns)
    with pytest.raises(ValueError, match="no screen"):
        HeadScreen(DenseWeight(np.ones((2, num_columns), np.float32)))


def test_kernels_without_vnni_have_none(isa_restored: None) -> None:
    screen = HeadScreen(DenseWeight(np.ones((2, 64), np.float32))) if HeadScreen.fits(64) else None
    kernels.set_isa("plain")
    assert not HeadScreen.fits(64)
    with pytest.raises(ValueError, match="no screen"):
        HeadScreen(DenseWeight(np.ones((2, 64), np.float32)))
    if screen is not None:
        with pytest.raises(ValueError, match="no screen"):
            screen.likeliest(np.ones((1, 64), np.float32), np.zeros(1, np.int64))


def test_arrays_of_other_shapes_are_refused(screening_isa: str) -> None:
    screen = HeadScreen(DenseWeight(np.ones((20, 64), np.float32)))
    with pytest.raises(ValueError, match="the head's columns"):
        screen.likeliest(np.ones((1, 32), np.float32), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="entry per row"):
        screen.likeliest(np.ones((2, 64), np.float32), np.zeros(1, np.int64))
    with pytest.raises(TypeError):
        screen.likeliest(np.ones((1, 64), np.float64), np.zeros(1, np.int64))
