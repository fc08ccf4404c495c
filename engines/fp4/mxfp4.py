"""MXFP4: blocks of 32 E2M1 codes under one power-of-two scale (E8M0). fp4-formats sections 2 and 4."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import blocks, e2m1, e8m0
from engines.fp4.blocks import QuantizedBlocks
from engines.fp4.rounding import require_finite

GROUP_SIZE = 32

_QUARTER = np.uint32(1 << 21)  # a quarter of a mantissa unit of 1.0: 1.75 and above carries into the exponent
_EXPONENT_SHIFT = np.uint32(23)
_SMALLEST_SUBNORMAL = np.finfo(np.float32).smallest_subnormal


def scale_bytes(amax: NDArray[np.float32]) -> NDArray[np.uint8]:
    """compressed-tensors' "even" rule: block maxima -> E8M0 bytes, same shape.

    E = floor(log2 amax), plus 1 when amax / 2^E >= 1.75; stored = clamp(E - 2 + 127, 0, 255). The largest
    magnitude of a block then lies in [3.5, 7) of its scale, and 6 to 7 saturate. NaN and infinity give 255.
    """
    bits = np.ascontiguousarray(amax, dtype=np.float32).view(np.uint32) + _QUARTER
    biased_exponent = (bits >> _EXPONENT_SHIFT).astype(np.int32)
    stored: NDArray[np.uint8] = np.clip(biased_exponent - 2, 0, 255).astype(np.uint8)
    stored = stored.reshape(np.shape(amax))
    return np.where(np.isfinite(amax), stored, np.uint8(e8m0.NAN))


def quantize(weight: NDArray[np.float32]) -> QuantizedBlocks:
    """compressed-tensors' quantisation of a weight, float32 [..., K].

    Raises ValueError for NaN or infinity and when K is no multiple of 32.
    """
    require_finite(weight, "the weight to quantise to MXFP4")
    return quantize_activations(weight)


def quantize_activations(values: NDArray[np.float32]) -> QuantizedBlocks:
    """The same arithmetic on activations, float32 [..., K], each block by itself.

    bfloat16 input gives the same result as its float32 values: the scale is a power of two and everything is
    exact. A block that holds NaN or infinity becomes NaN, as in the library.
    """
    split = blocks.split(values, GROUP_SIZE)
    scales = scale_bytes(blocks.absolute_maximum(split))
    multipliers = e8m0.decode(scales)
    codes = e2m1.encode(split / multipliers[..., None]).reshape(values.shape)
    return QuantizedBlocks(codes, scales, multipliers)


def scale_table() -> NDArray[np.float32]:
    """float32[256]: the multiplier each stored scale byte stands for, 2^(s-127); byte 255 is NaN."""
    return np.array(e8m0.VALUES)


def dequantize(packed: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Packed codes [..., K/2] and E8M0 bytes [..., K/32] -> float32 [..., K]. Exact in bfloat16 too."""
    return blocks.multiply(e2m1.unpack(packed), e8m0.decode(scales))


def quantize_modelopt_export(values: NDArray[np.float32]) -> QuantizedBlocks:
    """modelopt's MXFP4 export: scale 2^ceil(log2(amax/6)), ties toward zero, every exact zero is code 8.

    Only for comparing with its files: `quantize` has the smaller error. Raises ValueError as that does.
    """
    require_finite(values, "the tensor to quantise to MXFP4")
    split = blocks.split(values, GROUP_SIZE)
    scales = _ceiling_scale_bytes(blocks.absolute_maximum(split))
    multipliers = e8m0.decode(scales)
    codes = e2m1.encode_ties_to_zero(split / multipliers[..., None]).reshape(values.shape)
    return QuantizedBlocks(codes, scales, multipliers)


def _ceiling_scale_bytes(amax: NDArray[np.float32]) -> NDArray[np.uint8]:
    sixth = np.maximum((amax / e2m1.MAX).astype(np.float32), _SMALLEST_SUBNORMAL)
    # the library's float32 logarithm rounds off what is just above a power of two
    logarithm = np.log2(sixth.astype(np.float64)).astype(np.float32)
    exponent = np.maximum(np.ceil(logarithm), -e8m0.BIAS)
    stored: NDArray[np.uint8] = (exponent + e8m0.BIAS).astype(np.uint8)
    return stored
