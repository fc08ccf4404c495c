"""The order in which Blackwell's FP4 kernels read block scales: tiles of 128 rows by 4 columns.

Scale (r, c) of a matrix padded to [Np, Cp] lies, with integer divisions, at
(r/128)*128*Cp + (c/4)*512 + (r%32)*16 + (r%128)/32*4 + c%4; places that padding adds are 0.
Source: TensorRT-LLM, fp4Op.cpp, computeSFIndex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 128
TILE_COLUMNS = 4
_QUARTER_ROWS = 32


def padded_shape(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Both sizes rounded up to whole tiles."""
    return -(-num_rows // TILE_ROWS) * TILE_ROWS, -(-num_columns // TILE_COLUMNS) * TILE_COLUMNS


def swizzle(scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, C] in row order -> [pad128(N), pad4(C)] in tile order."""
    num_rows, num_columns = padded_shape(*scales.shape)
    padded = np.zeros((num_rows, num_columns), np.uint8)
    padded[: scales.shape[0], : scales.shape[1]] = scales
    tiles = padded.reshape(
        num_rows // TILE_ROWS,
        TILE_ROWS // _QUARTER_ROWS,
        _QUARTER_ROWS,
        num_columns // TILE_COLUMNS,
        TILE_COLUMNS,
    )
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(num_rows, num_columns)


def unswizzle(stored: NDArray[np.uint8], num_rows: int, num_columns: int) -> NDArray[np.uint8]:
    """The inverse of `swizzle` for a matrix of [num_rows, num_columns] before padding.

    Raises ValueError when `stored` has another shape than the padded one, or a place of the padding is not 0.
    """
    rows, columns = padded_shape(num_rows, num_columns)
    if stored.shape != (rows, columns):
        raise ValueError(f"swizzled scales are {stored.shape}; expected {(rows, columns)}")
    tiles = stored.reshape(
        rows // TILE_ROWS,
        columns // TILE_COLUMNS,
        _QUARTER_ROWS,
        TILE_ROWS // _QUARTER_ROWS,
        TILE_COLUMNS,
    )
    padded = tiles.transpose(0, 3, 2, 1, 4).reshape(rows, columns)
    if padded[num_rows:].any() or padded[:, num_columns:].any():
        raise ValueError("the padding of swizzled scales is not zero")
    plain: NDArray[np.uint8] = np.ascontiguousarray(padded[:num_rows, :num_columns])
    return plain
