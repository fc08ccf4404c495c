"""A tensor quantised in blocks along its last axis: codes and one scale byte per block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import e2m1


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedBlocks:
    """What quantising a float32 tensor [..., K] gives.

    `codes` uint8 [..., K], one E2M1 code each, not packed; `scales` uint8 [..., K/group], raw scale bytes;
    `multipliers` float32 [..., K/group], what a block's codes are multiplied by (global scale included);
    `global_scale` as the checkpoint stores it, None for MXFP4.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    multipliers: NDArray[np.float32]
    global_scale: np.float32 | None = None

    @property
    def packed(self) -> NDArray[np.uint8]:
        """uint8 [..., K/2], two codes to a byte."""
        return e2m1.pack(self.codes)

    def dequantized(self) -> NDArray[np.float32]:
        """float32 [..., K]: each code times its block's multiplier, rounded to float32 once."""
        return multiply(self.codes, self.multipliers)


def split(values: NDArray[np.float32], group_size: int) -> NDArray[np.float32]:
    """[..., K] -> view or copy [..., K/group_size, group_size]; ValueError when K is not a multiple."""
    num_columns = values.shape[-1]
    if num_columns % group_size:
        raise ValueError(
            f"the last axis has {num_columns} columns; expected a multiple of the group size {group_size}"
        )
    return values.reshape(*values.shape[:-1], num_columns // group_size, group_size)


def absolute_maximum(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., num_blocks, group] -> largest magnitude of each block, float32 [..., num_blocks]."""
    largest: NDArray[np.float32] = np.abs(blocks).max(axis=-1, initial=np.float32(0))
    return largest


def multiply(codes: NDArray[np.uint8], multipliers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Codes [..., K] times their block's multiplier [..., K/group] -> float32 [..., K], may be infinite."""
    group_size = codes.shape[-1] // max(multipliers.shape[-1], 1)
    values = e2m1.decode(codes).reshape(*multipliers.shape, group_size)
    with np.errstate(over="ignore"):
        values *= multipliers[..., None]
    return values.reshape(codes.shape)
