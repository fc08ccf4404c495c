"""What a checkpoint hands to an engine: the tensors of one module, still in the file's own encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import bfloat16, blocks, e2m1, mxfp4, nvfp4


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensors:
    """An unquantised module. `data` is a read-only view: raw uint16 bits for BF16, else float16 or float32.

    `dtype` is "BF16", "F16" or "F32"; `bias` float32 [N] or None.
    """

    name: str
    dtype: str
    data: NDArray[Any]
    bias: NDArray[np.float32] | None = None

    @property
    def num_bytes(self) -> int:
        """Of the weight as stored."""
        return self.data.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def as_float32(self) -> NDArray[np.float32]:
        """The numbers as float32, same shape; exact. A view for F32, else a new array."""
        return (
            bfloat16.decode(self.data) if self.dtype == "BF16" else self.data.astype(np.float32, copy=False)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fp4Tensors:
    """A linear layer in FP4: y = x W^T + bias with W [num_rows, num_columns].

    `format` is "mxfp4" or "nvfp4"; `convention` "compressed-tensors" or "modelopt".
    `packed` uint8 [N, K/2], low nibble = even column; `scales` uint8 [N, K/group_size], raw E8M0
    or E4M3 bytes; both are read-only views into the file. `global_scale` and `input_scale` are as stored: a
    divisor in compressed-tensors, a multiplier in modelopt; None for MXFP4. For NVFP4, `input_scale` None
    although `quantizes_activations` means that the file lacks it: activations cannot be quantised then.
    `bias` float32 [N] or None.
    """

    name: str
    format: str
    convention: str
    num_rows: int
    num_columns: int
    group_size: int
    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    global_scale: float | None
    input_scale: float | None
    quantizes_activations: bool
    bias: NDArray[np.float32] | None = None

    @property
    def num_bytes(self) -> int:
        """Of the weight as stored, codes and block scales."""
        return self.packed.nbytes + self.scales.nbytes

    @property
    def rounds_to_bfloat16(self) -> bool:
        """Whether the library that owns the layout rounds a decoded weight to bfloat16 (CT NVFP4 does)."""
        return self.format == "nvfp4" and self.convention == "compressed-tensors"

    def scale_table(self) -> NDArray[np.float32]:
        """float32[256]: the multiplier each scale byte stands for, global scale included."""
        if self.global_scale is None:
            return mxfp4.scale_table()
        return nvfp4.scale_table(nvfp4.Convention(self.convention), self.global_scale)

    def decoded(self, round_to_bfloat16: bool) -> NDArray[np.float32]:
        """The weight as float32 [N, K]: code times multiplier, on request rounded to bfloat16."""
        weight = blocks.multiply(e2m1.unpack(self.packed), self.scale_table()[self.scales])
        return bfloat16.round_trip(weight) if round_to_bfloat16 else weight
