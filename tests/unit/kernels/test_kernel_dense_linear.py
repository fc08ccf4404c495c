"""Unquantized linear layers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference
from engines.cpu.weights import DenseWeight

SHAPES = [
    *[(1, 1, 1), (1, 16, 128), (2, 5, 7), (3, 33, 129), (8, 48, 64), (33, 17, 131), (67, 100, 300)],
    *[(rows, 80, 257) for rows in range(1, 14)],
    (200, 33, 385),
]


def stored(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What DenseWeight takes, and the float32 values it stands for."""
    if dtype == "bfloat16":
        rounded = values.astype(ml_dtypes.bfloat16)
        return rounded.view(np.uint16), rounded.astype(np.float32)
    narrow = values.astype(dtype)
    return narrow, narrow.astype(np.float32)


def dense(x: NDArray[np.float32], weight: DenseWeight) -> NDArray[np.float32]:
    out = np.full((x.shape[0], weight.num_rows), np.nan, np.float32)
    kernels.dense_linear(x, weight, out)
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], dtype: str
) -> None:
    num_rows, num_outputs, num_columns = shape
    array, values = stored(rng.standard_normal((num_outputs, num_columns)).astype(np.float32), dtype)
    x = rng.standard_normal((num_rows, num_columns)).astype(np.float32)
    got = dense(x, DenseWeight(array))
    magnitude = reference.linear(np.abs(x), np.abs(values))
    assert (np.abs(got - reference.linear(x, values)) <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_finite_value_of_the_type_is_read_exactly(isa: str, dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(256, 256)
    typed = bits.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    with np.errstate(invalid="ignore"):  # signalling NaN patterns
        values = typed.astype(np.float32)
    finite = np.isfinite(values)
    array = np.where(finite, bits, np.uint16(0))
    weight = DenseWeight(array if dtype == "bfloat16" else array.view(np.float16))
    got = dense(np.eye(256, dtype=np.float32), weight)
    np.testing.assert_array_equal(got.T, np.where(finite, values, np.float32(0)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(isa: str, rng: np.random.Generator, dtype: str) -> None:
    weight = DenseWeight(stored(rng.standard_normal((37, 303)).astype(np.float32), dtype)[0])
    x = rng.standard_normal((103, 303)).astype(np.float32)
    batch = dense(x, weight)
    slices = [slice(7, 7 + num_rows) for num_rows in range(1, 15)]
    for rows in (*slices, slice(0, 1), slice(60, 67), slice(1, 66), slice(99, 103)):
        np.testing.assert_array_equal(dense(x[rows], weight), batch[rows])


def test_what_an_output_computes_does_not_leak_into_its_neighbours(isa: str) -> None:
    weight = np.ones((40, 131), np.float32)
    weight[17, 130] = np.inf
    got = dense(np.ones((3, 131), np.float32), DenseWeight(weight))
    assert np.isinf(got[:, 17]).all()
    np.testing.assert_array_equal(np.delete(got, 17, axis=1), np.float32(131))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nothing_of_an_earlier_product_is_left(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """An odd number of columns is padded to pairs: what lay there before, be it infinite, must not count."""
    array, values = stored(rng.standard_normal((33, 131)).astype(np.float32), dtype)
    x = rng.standard_normal((13, 131)).astype(np.float32)
    weight, wider = DenseWeight(array), DenseWeight(np.ones((33, 256), np.float32))
    assert np.isinf(dense(np.full((13, 256), np.inf, np.float32), wider)).all()
    magnitude = reference.linear(np.abs(x), np.abs(values))
    assert (np.abs(dense(x, weight) - reference.linear(x, values)) <= 1e-6 * magnitude).all()
