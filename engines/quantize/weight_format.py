"""The grid a weight is brought to: which scales a block may have and what its codes then mean.

One object per weight tensor: the format, the library whose arithmetic decides ties, and the global scale,
shared by the modules that servers fuse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import blocks, e2m1, e4m3, mxfp4, nvfp4
from engines.fp4.blocks import QuantizedBlocks

Float32Array = NDArray[np.float32]

_LARGEST = np.float32(e4m3.MAX * e2m1.MAX)
# With block scales of amax / 4 in play the largest one must not pass 448 = 256 * 1.75 (arXiv 2512.02010).
_HEADROOM = np.float32(448.0 / 256.0)


@dataclass(frozen=True, slots=True, eq=False)
class WeightGrid:
    """`format` "mxfp4" or "nvfp4"; `global_scale` as stored (compressed-tensors: a divisor), None for MXFP4.

    `bfloat16_model`: the library computes parts of an NVFP4 scale in bfloat16, because the model is.
    """

    format: str
    convention: str
    global_scale: float | None
    bfloat16_model: bool

    @classmethod
    def for_group(
        cls, format: str, convention: str, amax: np.float32, *, bfloat16_model: bool, headroom: bool
    ) -> WeightGrid:
        """The grid of fused weights of largest magnitude `amax`.

        `headroom` lowers the largest block scale from 448 to 256, to leave room for larger ones.
        """
        if format == "mxfp4":
            return cls(format, convention, None, bfloat16_model)
        reach = np.float32(amax * _HEADROOM) if headroom else np.float32(amax)
        scale: float
        if convention == "compressed-tensors":
            scale = nvfp4.global_scale_compressed_tensors(
                np.array([reach], np.float32), bfloat16_model=bfloat16_model
            )
        else:
            # an all-zero weight gives the library a scale of 0, which readers refuse; any other decodes to 0
            scale = float(np.float32(reach / _LARGEST)) or 1.0
        return cls(format, convention, scale, bfloat16_model)

    @property
    def group_size(self) -> int:
        return mxfp4.GROUP_SIZE if self.format == "mxfp4" else nvfp4.GROUP_SIZE

    def scale_table(self) -> Float32Array:
        """float32[256]: the multiplier each stored scale byte stands for."""
        if self.global_scale is None:
            return mxfp4.scale_table()
        return nvfp4.scale_table(nvfp4.Convention(self.convention), self.global_scale)

    def quantize(self, weight: Float32Array) -> QuantizedBlocks:
        """What the library's own rounding gives for float32 [rows, K], bit for bit."""
        if self.global_scale is None:
            return mxfp4.quantize_activations(weight)
        if self.convention == "compressed-tensors":
            return nvfp4.quantize_activations_compressed_tensors(
                weight, self.global_scale, bfloat16_model=self.bfloat16_model
            )
        return nvfp4.quantize_activations_modelopt(weight, self.global_scale)

    def encode(self, weight: Float32Array, scales: NDArray[np.uint8]) -> QuantizedBlocks:
        """Round float32 [rows, K] to the nearest codes under given scale bytes [rows, K/group]."""
        multipliers = self.scale_table()[scales]
        split = blocks.split(weight, self.group_size)
        codes = e2m1.encode(split / multipliers[..., None]).reshape(weight.shape)
        return QuantizedBlocks(codes, scales, multipliers)
