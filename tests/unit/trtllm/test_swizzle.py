"""The tile order of block scales against the formula and its published check values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.trtllm.swizzle import padded_shape, swizzle, unswizzle


def offset(row: int, column: int, padded_columns: int) -> int:
    tile = (row // 128) * 128 * padded_columns + (column // 4) * 512
    return tile + (row % 32) * 16 + ((row % 128) // 32) * 4 + column % 4


@pytest.mark.parametrize(
    ("place", "expected"),
    [((1, 0), 16), ((32, 0), 4), ((0, 4), 512), ((128, 0), 32768), ((127, 255), 32767), ((200, 37), 37513)],
)
def test_published_places(place: tuple[int, int], expected: int) -> None:
    scales = np.zeros((256, 256), np.uint8)
    scales[place] = 1
    assert swizzle(scales).reshape(-1).argmax() == expected == offset(*place, 256)


@given(rows=st.integers(1, 300), columns=st.integers(1, 11), seed=st.integers(0, 1000))
def test_every_scale_lies_where_the_formula_says_and_comes_back(rows: int, columns: int, seed: int) -> None:
    scales = np.random.default_rng(seed).integers(1, 127, (rows, columns), np.uint8)
    stored = swizzle(scales)
    assert stored.shape == padded_shape(rows, columns)
    flat = stored.reshape(-1)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)):
        assert flat[offset(row, column, stored.shape[1])] == scales[row, column]
    assert np.count_nonzero(stored) == rows * columns
    assert np.array_equal(unswizzle(stored, rows, columns), scales)


def test_an_unfit_shape_or_padding_is_refused() -> None:
    stored = swizzle(np.ones((100, 3), np.uint8))
    with pytest.raises(ValueError, match="expected"):
        unswizzle(stored, 129, 3)
    stored[-1, -1] = 7
    with pytest.raises(ValueError, match="padding"):
        unswizzle(stored, 100, 3)
