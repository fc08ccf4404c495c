"""Weights as GGUF stores them: blocks of scale bytes and codes, sixteen codes to eight bytes.

Layouts of ggml's block_mxfp4, block_nvfp4, block_q4_0 and block_q8_0 (ggml-common.h). Everywhere the low
nibbles of a run of bytes hold its first half and the high nibbles its second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.fp4 import e2m1, mxfp4, nvfp4

_NVFP4_BLOCK = 64  # four groups of 16 and their scales
_Q4_0_BLOCK = _Q8_0_BLOCK = 32

Module = DenseTensors | Fp4Tensors


def dense_float32(module: Module) -> NDArray[np.float32]:
    """The weight's numbers, [N, K]."""
    if isinstance(module, DenseTensors):
        return module.as_float32()
    return module.decoded(round_to_bfloat16=False)


def mxfp4_blocks(module: Module) -> NDArray[np.uint8]:
    """[N, K / 32 * 17]: E8M0 byte, 16 bytes of codes. Bit for bit for an MXFP4 weight, else quantised."""
    if isinstance(module, Fp4Tensors) and module.format == "mxfp4":
        codes, scales = e2m1.unpack(module.packed), np.asarray(module.scales)
    else:
        quantized = mxfp4.quantize(dense_float32(module))
        codes, scales = quantized.codes, quantized.scales
    num_rows, num_columns = codes.shape
    runs = _paired(codes.reshape(num_rows, num_columns // 32, 32))
    return np.concatenate([scales[..., None], runs], axis=-1).reshape(num_rows, -1)


def nvfp4_blocks(module: Module) -> tuple[NDArray[np.uint8], float]:
    """[N, K / 64 * 36]: four E4M3 bytes, 32 bytes of codes; and the multiplier of the whole tensor.

    Bit for bit for an NVFP4 weight, else quantised. Raises ValueError when K is no multiple of 64.
    """
    if isinstance(module, Fp4Tensors) and module.format == "nvfp4" and module.global_scale is not None:
        codes, scales = e2m1.unpack(module.packed), np.asarray(module.scales)
        is_divisor = module.convention == "compressed-tensors"
        multiplier = 1.0 / module.global_scale if is_divisor else module.global_scale
    else:
        quantized = nvfp4.quantize_weight_modelopt(dense_float32(module))
        assert quantized.global_scale is not None
        codes, scales, multiplier = quantized.codes, quantized.scales, float(quantized.global_scale)
    num_rows, num_columns = codes.shape
    if num_columns % _NVFP4_BLOCK:
        raise ValueError(f"{module.name} has {num_columns} columns; GGUF's NVFP4 needs a multiple of 64")
    runs = _paired(codes.reshape(num_rows, num_columns // 16, 16))
    blocks = num_columns // _NVFP4_BLOCK
    joined = [scales.reshape(num_rows, blocks, 4), runs.reshape(num_rows, blocks, 32)]
    return np.concatenate(joined, axis=-1).reshape(num_rows, -1), multiplier


def q4_0_blocks(module: Module) -> NDArray[np.uint8]:
    """[N, K / 32 * 18]: float16 scale, 16 bytes of codes 0 to 15 that stand for -8 to 7 times it.

    The value of largest magnitude becomes -8 exactly, as in ggml's own quantiser.
    """
    weight = dense_float32(module)
    split = weight.reshape(weight.shape[0], -1, _Q4_0_BLOCK)
    largest = np.take_along_axis(split, np.abs(split).argmax(-1)[..., None], axis=-1)
    scale = largest / np.float32(-8)
    codes = np.clip(np.trunc(split * _reciprocal(scale) + np.float32(8.5)), 0, 15).astype(np.uint8)
    joined = [scale.astype(np.float16).view(np.uint8), _paired(codes)]
    return np.concatenate(joined, axis=-1).reshape(weight.shape[0], -1)


def q8_0_blocks(module: Module) -> NDArray[np.uint8]:
    """[N, K / 32 * 34]: float16 scale, 32 int8."""
    weight = dense_float32(module)
    split = weight.reshape(weight.shape[0], -1, _Q8_0_BLOCK)
    scale = np.abs(split).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(split * _reciprocal(scale)).astype(np.int8)
    joined = [scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)]
    return np.concatenate(joined, axis=-1).reshape(weight.shape[0], -1)


def paired_halves(rows: NDArray[np.uint8], num_heads: int) -> NDArray[np.uint8]:
    """Rows of a query or key weight, [N, ...], in llama.cpp's order.

    It rotates neighbouring rows of a head; checkpoints of Hugging Face rotate row i with i + head_dim / 2.
    """
    half = rows.shape[0] // num_heads // 2
    swapped = rows.reshape(num_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(swapped).reshape(rows.shape)


def _paired(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    half = codes.shape[-1] // 2
    joined: NDArray[np.uint8] = codes[..., :half] | (codes[..., half:] << np.uint8(4))
    return joined


def _reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        inverse: NDArray[np.float32] = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    return inverse
