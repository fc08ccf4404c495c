"""What every kernel computes, in NumPy: the definition the C++ kernels are tested against.

`decode_weight`, `fp4_linear_w4a4`, the quantizers and `scatter_add_rows` define the bits of the result. The
others compute in float64 and define it up to float32 rounding. Nothing here is fast or used to serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import bfloat16, e2m1, e4m3, mxfp4, nvfp4
from engines.fp4.blocks import QuantizedBlocks

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
_E4M3_ONE = 0x38
SUMMED_BLOCKS = {mxfp4.GROUP_SIZE: 4, nvfp4.GROUP_SIZE: 2}
Shard = tuple[NDArray[np.uint8], NDArray[np.uint8], Float32Array]


def decode_weight(shards: Sequence[Shard], group_size: int, round_to_bfloat16: bool = False) -> Float32Array:
    """Shards (packed [N, K/2], scales [N, K/group_size], scale_table [256]) -> float32 [sum of N, K]."""
    parts = []
    for packed, scales, scale_table in shards:
        values = e2m1.decode(e2m1.unpack(packed))
        multipliers = np.repeat(scale_table[scales], group_size, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            parts.append(values * multipliers)
    weight = np.concatenate(parts)
    return bfloat16.round_trip(weight) if round_to_bfloat16 else weight


def split_scale_table(scale_table: Float32Array) -> tuple[Float32Array, float]:
    """Multipliers without the tensor's own scale, and that scale, where the table is E4M3 times one factor.

    Files divide by the factor or multiply: entries may be off by float32 rounding. Any other table stays.
    """
    factor = float(scale_table[_E4M3_ONE])
    expected = e4m3.VALUES[:127].astype(np.float64) * factor
    normal = np.finfo(np.float32).tiny <= factor < np.inf
    if normal and (np.abs(scale_table[:127] - expected) <= 2.0**-22 * expected).all():
        return e4m3.VALUES, factor
    return scale_table, 1.0


def fp4_linear_w4a4(
    codes: NDArray[np.int8],
    scales: Float32Array,
    shards: Sequence[Shard],
    group_size: int,
    activation_scale: float = 1.0,
) -> Float32Array:
    """Exact block sums, scaled and added in runs of 4 (MXFP4) or 2 blocks, each step rounded to float32.

    In a run, part = part + sum * min((0.25 * w_scale) * a_scale, FLT_MAX) for its blocks in order; then
    acc = acc + part. At the end acc * (the weight's scale * activation_scale).
    """
    weight_codes = np.concatenate(
        [(2 * e2m1.decode(e2m1.unpack(packed))).astype(np.int64) for packed, _, _ in shards]
    )
    tables = [split_scale_table(table) for _, _, table in shards]
    quarter = np.concatenate(
        [np.float32(0.25) * table[bytes_] for (_, bytes_, _), (table, _) in zip(shards, tables, strict=True)]
    )
    factors = [
        np.full(bytes_.shape[0], np.float32(factor) * np.float32(activation_scale))
        for (_, bytes_, _), (_, factor) in zip(shards, tables, strict=True)
    ]
    num_rows, num_blocks = scales.shape
    x = codes.astype(np.int64).reshape(num_rows, num_blocks, group_size)
    w = weight_codes.reshape(-1, num_blocks, group_size)
    acc = np.zeros((num_rows, w.shape[0]), np.float32)
    part = np.zeros_like(acc)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for block in range(num_blocks):
            sums = (x[:, block] @ w[:, block].T).astype(np.float32)
            product = quarter[None, :, block] * scales[:, block, None]
            part = part + sums * np.minimum(product, np.finfo(np.float32).max)
            if (block + 1) % SUMMED_BLOCKS[group_size] == 0 or block == num_blocks - 1:
                acc, part = acc + part, np.zeros_like(part)
        out: Float32Array = acc * np.concatenate(factors)
    return out


def linear(x: Float32Array, weight: NDArray[np.floating]) -> Float64Array:
    """x [M, K] times weight [N, K] transposed, in float64."""
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64).T)


def quantize_mxfp4(x: Float32Array) -> tuple[NDArray[np.int8], Float32Array]:
    """Codes (E2M1 value times two) and multipliers; a block with NaN or infinity gets 0 and NaN."""
    return _doubled(x, mxfp4.quantize_activations(x), mxfp4.GROUP_SIZE)


def quantize_nvfp4(
    x: Float32Array, input_scale: float, modelopt: bool
) -> tuple[NDArray[np.int8], Float32Array]:
    """As `quantize_mxfp4`, but the scales are E4M3 values: `input_scale` is left out.

    `input_scale` multiplies with `modelopt`, else it divides.
    """
    quantize = (
        nvfp4.quantize_activations_modelopt if modelopt else nvfp4.quantize_activations_compressed_tensors
    )
    quantized = quantize(x, input_scale)
    return _doubled(x, replace(quantized, multipliers=e4m3.decode(quantized.scales)), nvfp4.GROUP_SIZE)


def _doubled(
    x: Float32Array, quantized: QuantizedBlocks, group_size: int
) -> tuple[NDArray[np.int8], Float32Array]:
    finite = np.asarray(np.isfinite(x).reshape(x.shape[0], -1, group_size).all(axis=2))
    codes = (2 * e2m1.decode(quantized.codes)).astype(np.int8).reshape(*finite.shape, group_size)
    codes = np.where(finite[..., None], codes, np.int8(0)).reshape(x.shape)
    return codes, np.where(finite, quantized.multipliers, np.float32(np.nan))


def rms_norm(x: Float32Array, weight: Float32Array, epsilon: float) -> Float64Array:
    """weight * x / sqrt(mean(x^2) + epsilon) of each row."""
    wide = x.astype(np.float64)
    return np.asarray(weight * wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + epsilon))


def rope(q: Float32Array, positions: NDArray[np.int64], cos: Float32Array, sin: Float32Array) -> Float64Array:
    """q [M, num_heads, head_dim] rotated; dimension i pairs with i + head_dim/2."""
    first, second = np.split(q.astype(np.float64), 2, axis=-1)
    c, s = cos[positions][:, None, :], sin[positions][:, None, :]
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1)


def silu_mul(gate_up: Float32Array) -> Float64Array:
    """silu(gate) * up for gate_up [M, 2I] = [gate, up]."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore"):
        return np.asarray(gate / (1.0 + np.exp(-gate)) * up)


def fp8_kv_rows(rows: Float32Array) -> Float32Array:
    """What an FP8 KV cache makes of rows [..., head_dim]: E4M3 numbers times a power of two per row, the
    least that brings the row's largest magnitude to 448 or less. A row with a NaN or an infinity becomes
    NaN."""
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2^exponent, 1/2 <= mantissa < 1
    scale_exponent = np.clip(exponent - 9 + (mantissa > 0.875), -126, 119)
    scale_exponent = np.where(largest > 0, scale_exponent, -126)
    numbers = e4m3.decode(e4m3.encode(np.ldexp(rows, -scale_exponent)))
    held = np.ldexp(numbers, scale_exponent)
    return np.where(np.isfinite(largest), held, np.float32(np.nan)).astype(np.float32)


def attention(
    q: Float32Array,
    keys: Float32Array,
    values: Float32Array,
    first_position: int,
    scale: float,
    sliding_window: int,
) -> Float64Array:
    """q [n, num_heads, head_dim], consecutive positions; keys, values [length, num_kv_heads, head_dim]."""
    group = q.shape[1] // keys.shape[1]
    k = np.repeat(keys.astype(np.float64), group, axis=1)
    v = np.repeat(values.astype(np.float64), group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * scale
    query, key = np.arange(q.shape[0])[:, None] + first_position, np.arange(keys.shape[0])[None, :]
    visible = key <= query
    if sliding_window:
        visible &= key > query - sliding_window
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hqk,khd->qhd", weights, v))


def route_top_k(logits: Float32Array, k: int) -> tuple[NDArray[np.int32], Float64Array]:
    """Softmax, the k largest (ties to the lower expert id), renormalised to sum 1."""
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    ids = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(probabilities, ids, axis=-1)
    return ids.astype(np.int32), weights / weights.sum(axis=-1, keepdims=True)


def scatter_add_rows(
    y: Float32Array, rows: NDArray[np.int64], row_weights: Float32Array, out: Float32Array
) -> Float32Array:
    """out with row_weights[i] * y[i] added to row rows[i], in ascending i, product and sum rounded."""
    result: Float32Array = out.copy()
    for i, row in enumerate(rows):
        result[row] += row_weights[i] * y[i]
    return result
