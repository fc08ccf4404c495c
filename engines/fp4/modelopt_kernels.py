"""What modelopt's own kernels compute while it calibrates and fine-tunes: fake quantisation, values only.

They differ from its export where a block scale underflows (NVFP4) and at ties and powers of two (MXFP4), so
numbers an author measured inside modelopt can differ from the exported file's (fp4-formats 1 and 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import blocks, e2m1, e4m3, e8m0, mxfp4, nvfp4

_SMALLEST_SCALE = np.float32(1e-5)


def fake_quantize_nvfp4(values: NDArray[np.float32], global_scale: float) -> NDArray[np.float32]:
    """float32 [..., K] -> float32 [..., K]; `global_scale` is a multiplier.

    No floor under the block scale; an effective scale below 1e-5 counts as 1, so that such a block vanishes.
    """
    factor = np.float32(global_scale)
    split = blocks.split(values, nvfp4.GROUP_SIZE)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        wanted = blocks.absolute_maximum(split) / (e2m1.MAX * factor)
    scales = e4m3.decode(e4m3.encode(np.nan_to_num(wanted, posinf=e4m3.MAX)))
    effective = (scales * factor).astype(np.float32)
    effective = np.where(effective < _SMALLEST_SCALE, np.float32(1), effective)
    codes = e2m1.encode(split / effective[..., None]).reshape(values.shape)
    return blocks.multiply(codes, effective)


def fake_quantize_mxfp4(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """float32 [..., K] -> the values [..., K] and the scales [..., K/32], both float32.

    scale = 2^ceil(log2(amax/6)) exactly, 1 for a block of zeros; ties to even.
    """
    split = blocks.split(values, mxfp4.GROUP_SIZE)
    amax = blocks.absolute_maximum(split)
    mantissa, exponent = np.frexp((amax / e2m1.MAX).astype(np.float32))
    exponent = np.where(mantissa == np.float32(0.5), exponent - 1, exponent)  # 2^n is its own ceiling
    stored = np.where(amax == 0, e8m0.BIAS, np.maximum(exponent + e8m0.BIAS, 0)).astype(np.uint8)
    scales = e8m0.decode(stored)
    codes = e2m1.encode(split / scales[..., None]).reshape(values.shape)
    return blocks.multiply(codes, scales), scales
