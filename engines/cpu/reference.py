"""What every kernel computes, in NumPy: the definition the C++ kernels are tested against.

`decode_weight`, `fp4_linear_w4a4`, the quantizers and `scatter_add_rows` define the bits of the result. The
others compute in float64 and define it up to float32 rounding. Nothing here is fast or used to serve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import bfloat16, e2m1, mxfp4, nvfp4
from engines.fp4.blocks import QuantizedBlocks

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
SUPERBLOCK_COLUMNS = 128
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


def fp4_linear_w4a4(
    codes: NDArray[np.int8], scales: Float32Array, shards: Sequence[Shard], group_size: int
) -> Float32Array:
    """Exact block sums, scaled and added in superblocks of 128 columns, each step rounded to float32.

    In a superblock, part = part + sum * min((0.25 * w_scale) * a_scale, FLT_MAX) for its blocks in order;
    then acc = acc + part.
    """
    weight_codes = np.concatenate(
        [(2 * e2m1.decode(e2m1.unpack(packed))).astype(np.int64) for packed, _, _ in shards]
    )
    quarter = np.concatenate([np.float32(0.25) * table[bytes_] for _, bytes_, table in shards])
    num_rows, num_blocks = scales.shape
    x = codes.astype(np.int64).reshape(num_rows, num_blocks, group_size)
    w = weight_codes.reshape(-1, num_blocks, group_size)
    acc = np.zeros((num_rows, w.shape[0]), np.float32)
    part = np.zeros_like(acc)
    blocks_per_superblock = SUPERBLOCK_COLUMNS // group_size
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for block in range(num_blocks):
            sums = (x[:, block] @ w[:, block].T).astype(np.float32)
            product = quarter[None, :, block] * scales[:, block, None]
            part = part + sums * np.minimum(product, np.finfo(np.float32).max)
            if (block + 1) % blocks_per_superblock == 0 or block == num_blocks - 1:
                acc, part = acc + part, np.zeros_like(part)
    return acc


def linear(x: Float32Array, weight: NDArray[np.floating]) -> Float64Array:
    """x [M, K] times weight [N, K] transposed, in float64."""
    return np.asarray(x.astype(np.float64) @ weight.astype(np.float64).T)


def quantize_mxfp4(x: Float32Array) -> tuple[NDArray[np.int8], Float32Array]:
    """Codes (E2M1 value times two) and multipliers; a block with NaN or infinity gets 0 and NaN."""
    return _doubled(x, mxfp4.quantize_activations(x), mxfp4.GROUP_SIZE)


def quantize_nvfp4(
    x: Float32Array, input_scale: float, modelopt: bool
) -> tuple[NDArray[np.int8], Float32Array]:
    """As `quantize_mxfp4`; `input_scale` multiplies with `modelopt`, else it divides."""
    quantize = (
        nvfp4.quantize_activations_modelopt if modelopt else nvfp4.quantize_activations_compressed_tensors
    )
    return _doubled(x, quantize(x, input_scale), nvfp4.GROUP_SIZE)


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
