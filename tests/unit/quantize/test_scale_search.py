"""Block scales chosen by error: never worse than the library's, the best of those tried, weighted rightly."""

from __future__ import annotations

import numpy as np
import pytest

from engines.fp4 import e4m3
from engines.quantize.scale_search import four_over_six_scales, search_scales
from engines.quantize.weight_format import WeightGrid

GRIDS = [("mxfp4", "compressed-tensors"), ("nvfp4", "compressed-tensors"), ("nvfp4", "modelopt")]


def random_weight(rows: int = 24, columns: int = 128) -> np.ndarray:
    return np.random.default_rng(3).standard_t(4, (rows, columns)).astype(np.float32) * np.float32(0.03)


def make_grid(weight: np.ndarray, format: str, layout: str, headroom: bool = True) -> WeightGrid:
    amax = np.float32(np.abs(weight).max())
    return WeightGrid.for_group(format, layout, amax, bfloat16_model=False, headroom=headroom)


def block_errors(weight: np.ndarray, decoded: np.ndarray, group: int, importance: np.ndarray) -> np.ndarray:
    squared = (weight.astype(np.float64) - decoded) ** 2 * importance
    return squared.reshape(weight.shape[0], -1, group).sum(-1)


@pytest.mark.parametrize(("format", "layout"), GRIDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_block_is_worse_than_the_librarys_and_most_are_better(format, layout, weighted):
    weight = random_weight()
    grid = make_grid(weight, format, layout)
    importance = np.random.default_rng(4).uniform(0.1, 9, 128).astype(np.float32) if weighted else None
    found = grid.encode(weight, search_scales(weight, grid, importance)).dequantized()
    plain = grid.quantize(weight).dequantized()
    weights = np.ones(128) if importance is None else importance
    searched = block_errors(weight, found, grid.group_size, weights)
    rounded = block_errors(weight, plain, grid.group_size, weights)
    assert (searched <= rounded * (1 + 1e-5)).all()
    assert searched.sum() < 0.99 * rounded.sum()


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
def test_the_search_is_close_to_trying_every_scale_byte(layout):
    weight = random_weight(rows=4)
    grid = make_grid(weight, "nvfp4", layout)
    every = np.stack(
        [
            block_errors(
                weight,
                grid.encode(weight, np.full((4, 8), byte, np.uint8)).dequantized(),
                16,
                np.ones(128),
            )
            for byte in range(1, 127)
        ]
    ).min(axis=0)
    found = grid.encode(weight, search_scales(weight, grid, None)).dequantized()
    assert block_errors(weight, found, 16, np.ones(128)).sum() <= 1.001 * every.sum()


def test_four_over_six_puts_the_maximum_at_four_where_values_lie_near_five_sixths():
    """12 and 10 under amax / 6 = 2 are 6 and 5, a tie; under amax / 4 = 3 they are 4 and 3.3."""
    weight = np.zeros((1, 32), np.float32)
    weight[0, :16] = [12, 10, 10, 10] * 4
    weight[0, 16:] = [12, 8, 6, 4] * 4  # exact under amax / 6
    grid = WeightGrid("nvfp4", "modelopt", 1.0, False)
    scales = e4m3.decode(four_over_six_scales(weight, grid, None))
    assert scales.tolist() == [[3.0, 2.0]]


def test_four_over_six_is_the_better_of_its_two_scales():
    weight = random_weight()
    grid = make_grid(weight, "nvfp4", "modelopt")
    at_six = grid.quantize(weight)
    at_four = np.maximum(e4m3.encode(np.abs(weight.reshape(24, 8, 16)).max(-1) / 4 / grid.global_scale), 1)
    both = [
        block_errors(weight, grid.encode(weight, scales).dequantized(), 16, np.ones(128))
        for scales in (at_six.scales, at_four)
    ]
    chosen = grid.encode(weight, four_over_six_scales(weight, grid, None)).dequantized()
    np.testing.assert_allclose(
        block_errors(weight, chosen, 16, np.ones(128)), np.minimum(*both), rtol=1e-4, atol=1e-12
    )
    assert (both[1] < both[0]).any()


def test_headroom_leaves_room_for_scales_of_a_quarter_of_the_maximum():
    weight = random_weight()
    largest = e4m3.decode(make_grid(weight, "nvfp4", "modelopt").quantize(weight).scales).max()
    assert largest == 256.0
    plain = make_grid(weight, "nvfp4", "modelopt", headroom=False)
    assert e4m3.decode(plain.quantize(weight).scales).max() == 448.0
