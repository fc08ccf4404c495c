"""Choosing block scales by the error they leave, instead of from the block's maximum alone.

The error of a block is the sum over its columns of h_k (w_k - w'_k)^2, where h_k is the mean square of the
input column k: the error of the layer's output if columns were uncorrelated. h_k = 1 without calibration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import blocks, e2m1, e4m3
from engines.quantize.weight_format import WeightGrid

Float32Array = NDArray[np.float32]

# Steps of the scale byte from the library's choice. An E4M3 step is 1/15 to 1/8 of the scale: from a fifth
# of the maximum cut off to a maximum at code 4. An E8M0 step is a factor of two.
_E4M3_STEPS = range(-3, 7)
_E8M0_STEPS = range(-1, 2)

_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_HALF_UNITS = (1, 1, 1, 1, 2, 2, 4)  # what passing each midpoint adds to twice the magnitude


def search_scales(
    weight: Float32Array, grid: WeightGrid, importance: Float32Array | None
) -> NDArray[np.uint8]:
    """Scale bytes [rows, K/group] of least error for float32 [rows, K]; `importance` is h, [K]."""
    base = grid.quantize(weight).scales.astype(np.int16)
    steps, largest = (_E8M0_STEPS, 254) if grid.format == "mxfp4" else (_E4M3_STEPS, 126)
    smallest = 0 if grid.format == "mxfp4" else 1
    candidates = [np.clip(base + step, smallest, largest).astype(np.uint8) for step in steps]
    return best_of(weight, grid, candidates, importance)


def four_over_six_scales(
    weight: Float32Array, grid: WeightGrid, importance: Float32Array | None
) -> NDArray[np.uint8]:
    """NVFP4 scale bytes that put each block's maximum at 6 or at 4, whichever leaves less error.

    E2M1 has nothing between 4 and 6, which hurts blocks with values at about 5/6 of their maximum ("Four Over
    Six", arXiv 2512.02010).
    """
    unit = grid.scale_table()[e4m3.encode(np.array([1], np.float32))]
    quarter = blocks.absolute_maximum(blocks.split(weight, grid.group_size)) / np.float32(4)
    at_four = np.maximum(e4m3.encode(quarter / unit), 1).astype(np.uint8)
    return best_of(weight, grid, [grid.quantize(weight).scales, at_four], importance)


def best_of(
    weight: Float32Array,
    grid: WeightGrid,
    candidates: list[NDArray[np.uint8]],
    importance: Float32Array | None,
) -> NDArray[np.uint8]:
    """Of several scale bytes per block the one of least error, ties to the earlier candidate."""
    table = grid.scale_table()
    magnitudes = _by_column_of_block(np.abs(weight), grid.group_size)
    weights = None if importance is None else _by_column_of_block(importance[None, :], grid.group_size)
    chosen = candidates[0].copy()
    least = _block_errors(magnitudes, table[chosen], weights)
    for scales in candidates[1:]:
        errors = _block_errors(magnitudes, table[scales], weights)
        is_better = errors < least
        np.copyto(chosen, scales, where=is_better)
        np.copyto(least, errors, where=is_better)
    return np.asarray(chosen, np.uint8)


def _by_column_of_block(values: Float32Array, group_size: int) -> Float32Array:
    """[rows, K] -> contiguous [group, rows, K/group], so that sums over a block are whole-array additions."""
    return np.ascontiguousarray(np.moveaxis(blocks.split(values, group_size), -1, 0))


def _block_errors(
    magnitudes: Float32Array, multipliers: Float32Array, weights: Float32Array | None
) -> Float32Array:
    """[group, rows, num_blocks] under [rows, num_blocks] -> weighted squared error, [rows, num_blocks]."""
    quotients = magnitudes / multipliers
    half_units = np.zeros(magnitudes.shape, np.uint8)
    for midpoint, step in zip(_MIDPOINTS, _HALF_UNITS, strict=True):
        reached = np.greater_equal(quotients, np.float32(midpoint)).view(np.uint8)
        half_units += reached if step == 1 else reached * np.uint8(step)
    errors = np.multiply(half_units, np.float32(0.5) * multipliers, out=quotients)
    errors -= magnitudes
    np.square(errors, out=errors)
    if weights is not None:
        errors *= weights
    total: Float32Array = errors.sum(axis=0)
    return total


assert sum(_HALF_UNITS) == 2 * int(e2m1.MAX)
