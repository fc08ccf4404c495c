"""NVFP4: blocks of 16 E2M1 codes under an E4M3 scale, one float32 scale per tensor (fp4-formats 3 and 4).

The two libraries agree on the idea and differ in everything that decides bits: compressed-tensors stores a
divisor and computes part of it in the model's dtype; modelopt stores a multiplier and stays in float32. Hence
two sets of functions. The order of the float32 operations is the libraries': exact ties are frequent.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import bfloat16, blocks, e2m1, e4m3
from engines.fp4.blocks import QuantizedBlocks
from engines.fp4.rounding import require_finite

GROUP_SIZE = 16

_LARGEST = np.float32(e4m3.MAX * e2m1.MAX)  # 2688, the largest product of a code and a block scale
_CT_ZERO_SCALE = np.float32(0.125)
_SMALLEST_NORMAL = np.finfo(np.float32).tiny  # of float32 and of bfloat16 alike


class Convention(str, Enum):
    """How a file stores the scale of the whole tensor."""

    COMPRESSED_TENSORS = "compressed-tensors"  # a divisor: 2688 / amax
    MODELOPT = "modelopt"  # a multiplier: amax / 2688


def scale_table(convention: Convention, global_scale: float) -> NDArray[np.float32]:
    """float32[256]: the multiplier each stored scale byte stands for under `global_scale` (as stored).

    compressed-tensors: f32(E4M3 / global); modelopt: f32(E4M3 * global). Bytes 0x7f and 0xff are NaN.
    """
    scale = np.float32(global_scale)
    table: NDArray[np.float32]
    with np.errstate(over="ignore"):
        table = e4m3.VALUES / scale if convention is Convention.COMPRESSED_TENSORS else e4m3.VALUES * scale
    return table


def dequantize(
    packed: NDArray[np.uint8], scales: NDArray[np.uint8], global_scale: float, convention: Convention
) -> NDArray[np.float32]:
    """Packed codes [..., K/2] and E4M3 bytes [..., K/16] -> float32 [..., K], not rounded to bfloat16."""
    return blocks.multiply(e2m1.unpack(packed), scale_table(convention, global_scale)[scales])


def quantize_weight_compressed_tensors(
    weight: NDArray[np.float32], *, bfloat16_model: bool
) -> QuantizedBlocks:
    """compressed-tensors' weight quantisation of float32 [..., K].

    With `bfloat16_model` the weight's values are bfloat16 ones and the library's bfloat16 steps (the global
    scale and amax/6) are rounded as it does. Raises ValueError for NaN, infinity, or K not a multiple of 16.
    """
    require_finite(weight, "the weight to quantise to NVFP4")
    global_scale = global_scale_compressed_tensors(weight, bfloat16_model=bfloat16_model)
    return quantize_activations_compressed_tensors(weight, global_scale, bfloat16_model=bfloat16_model)


def global_scale_compressed_tensors(weight: NDArray[np.float32], *, bfloat16_model: bool) -> float:
    """2688 / amax in the model's dtype, as the reciprocal times 2688; 1 where that overflows."""
    amax = np.maximum(np.abs(weight).max(initial=np.float32(0)), _SMALLEST_NORMAL)
    reciprocal = _in_model_dtype(np.array(np.float32(1) / amax), bfloat16_model)
    with np.errstate(over="ignore"):
        scale = float(_in_model_dtype(np.array(reciprocal * _LARGEST), bfloat16_model))
    return scale if np.isfinite(scale) else 1.0


def quantize_activations_compressed_tensors(
    values: NDArray[np.float32], global_scale: float, *, bfloat16_model: bool = False
) -> QuantizedBlocks:
    """compressed-tensors' quantisation under a given (calibrated, static) global scale, a divisor as stored.

    float32 [..., K]; block scales are dynamic. A value beyond the calibrated maximum saturates.
    """
    divisor = np.float32(global_scale)
    split = blocks.split(values, GROUP_SIZE)
    sixth = _in_model_dtype(blocks.absolute_maximum(split) / e2m1.MAX, bfloat16_model)
    with np.errstate(over="ignore"):
        wanted = np.clip(divisor * sixth, -e4m3.MAX, e4m3.MAX)
    scales = e4m3.encode(wanted)
    scales = np.where(scales == 0, e4m3.encode(_CT_ZERO_SCALE), scales)
    multipliers = (e4m3.decode(scales) / divisor).astype(np.float32)
    return _encode(values, split, scales, multipliers, divisor)


def quantize_weight_modelopt(weight: NDArray[np.float32]) -> QuantizedBlocks:
    """modelopt's weight export: float32 [..., K], global scale amax / 2688.

    Raises ValueError for NaN, infinity, or K not a multiple of 16.
    """
    require_finite(weight, "the weight to quantise to NVFP4")
    amax = np.abs(weight).max(initial=np.float32(0))
    return quantize_activations_modelopt(weight, float(np.float32(amax / _LARGEST)))


def quantize_activations_modelopt(values: NDArray[np.float32], global_scale: float) -> QuantizedBlocks:
    """modelopt's quantisation under a given (calibrated, static) global scale, the multiplier as stored.

    float32 [..., K]; block scales are dynamic, not below 2^-9, and 1.0 for a block of zeros.
    """
    factor = np.float32(global_scale)
    split = blocks.split(values, GROUP_SIZE)
    amax = blocks.absolute_maximum(split)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        wanted = amax / (e2m1.MAX * factor)
    wanted = np.where(amax == 0, np.float32(1), np.clip(wanted, e4m3.SMALLEST, e4m3.MAX))
    scales = e4m3.encode(wanted)
    multipliers = (e4m3.decode(scales) * factor).astype(np.float32)
    return _encode(values, split, scales, multipliers, factor)


def _in_model_dtype(values: NDArray[np.float32], bfloat16_model: bool) -> NDArray[np.float32]:
    return bfloat16.round_trip(values) if bfloat16_model else values


def _encode(
    values: NDArray[np.float32],
    split: NDArray[np.float32],
    scales: NDArray[np.uint8],
    multipliers: NDArray[np.float32],
    global_scale: np.float32,
) -> QuantizedBlocks:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotients = split / multipliers[..., None]
    codes = e2m1.encode(quotients).reshape(values.shape)
    return QuantizedBlocks(codes, scales, multipliers, global_scale)
