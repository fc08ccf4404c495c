"""Typed facade over the compiled kernels.

Every function checks types, shapes and contiguity once and raises TypeError or ValueError naming the
argument; the C++ side checks indices (token ids, slots, block ids, positions) before any access and raises
ValueError. Outputs are written in place. No kernel's result for a row depends on the other rows of the call,
nor on their number or the number of threads. `engines.cpu.reference` says what each kernel computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels
from engines.cpu.array_checks import (
    DENSE_DTYPES,
    FLOAT32,
    INT8,
    INT32,
    INT64,
    UINT8,
    check_array,
    check_output,
)
from engines.cpu.weights import DenseWeight, Fp4Weight

Float32Array = NDArray[np.float32]

_CACHE_DTYPES = (FLOAT32, np.dtype(np.uint16), UINT8)


def isa_name() -> str:
    """Instruction set in use, one of `available_isas` or "amx-emulated".

    NYBBLE_CPU_ISA or `set_isa` choose.
    """
    return _kernels.isa_name()


def available_isas() -> list[str]:
    """Instruction sets this build and processor can run, best first."""
    return _kernels.available_isas()


def set_isa(name: str) -> None:
    """Use the instruction set `name` from the next kernel on; ValueError lists the choices."""
    _kernels.set_isa(name)


def amx_status() -> str:
    """Whether AMX is "usable", in part, or why not: build, processor, operating system, its self-check."""
    return _kernels.amx_status()


def num_threads() -> int:
    """Threads a kernel may use, the calling one included; the number of physical cores unless set."""
    return _kernels.num_threads()


def set_num_threads(count: int) -> None:
    """Use `count` threads (1 to 1024) from the next kernel on."""
    _kernels.set_num_threads(count)


def pin_calling_thread() -> None:
    """Tie this thread to the core that the kernels' other threads leave to it, when they have all cores.

    For a thread that does nothing but call kernels. `NYBBLE_PIN_THREADS=0` leaves all threads where they are.
    """
    _kernels.pin_calling_thread()


def fp4_linear_w4a4(
    codes: NDArray[np.int8], scales: Float32Array, weight: Fp4Weight, out: Float32Array
) -> None:
    """out[M, N] = quantized activations times weight, transposed.

    codes [M, K] is the E2M1 value times two (-12..12), scales [M, K/group_size] its multipliers, both as
    `quantize_mxfp4` and `quantize_nvfp4` write them; the weight's `activation_scale` is applied to the sums.
    Bit-identical on every instruction set.
    """
    columns = weight.num_columns
    check_array("codes", codes, INT8, (None, columns))
    check_array("scales", scales, FLOAT32, (codes.shape[0], columns // weight.group_size))
    check_output("out", out, FLOAT32, (codes.shape[0], weight.num_rows))
    _kernels.fp4_linear_w4a4(codes, scales, weight, out)


def fp4_linear_w4a16(x: Float32Array, weight: Fp4Weight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the decoded weight, transposed, for activations that nobody quantized.

    Where the processor has integer dot products, x enters as 16-bit integers that share a power of two per
    128 columns (MXFP4) or 16 (NVFP4): an error of at most 2^-15 of the largest magnitude among them, 1/64 of
    what bfloat16 may do to that largest one. With AMX bfloat16 tiles, for NVFP4, they have 8 significant
    bits: off by at most 2^-9 of the value or 2^-12 of the largest. Elsewhere it is `fp4_linear_f32`.
    `round_to_bfloat16` of the weight is ignored.
    """
    check_array("x", x, FLOAT32, (None, weight.num_columns))
    check_output("out", out, FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.fp4_linear_w4a16(x, weight, out)


def fp4_linear_f32(x: Float32Array, weight: Fp4Weight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the decoded weight, transposed, summed in float32."""
    check_array("x", x, FLOAT32, (None, weight.num_columns))
    check_output("out", out, FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.fp4_linear_f32(x, weight, out)


def dense_linear(x: Float32Array, weight: DenseWeight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the weight, transposed, summed in float32."""
    check_array("x", x, FLOAT32, (None, weight.num_columns))
    check_output("out", out, FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.dense_linear(x, weight, out)


def _check_quantize(x: Float32Array, codes: NDArray[np.int8], scales: Float32Array, group_size: int) -> None:
    check_array("x", x, FLOAT32, (None, None))
    rows, columns = x.shape
    if columns % group_size:
        raise ValueError(f"x has {columns} columns, expected a multiple of the group size {group_size}")
    check_output("codes", codes, INT8, (rows, columns))
    check_output("scales", scales, FLOAT32, (rows, columns // group_size))


def quantize_mxfp4(x: Float32Array, codes: NDArray[np.int8], scales: Float32Array) -> None:
    """Quantize x [M, K] in blocks of 32: codes [M, K] (E2M1 value times two), scales [M, K/32] (2^e).

    Compressed-tensors' rule. A block with NaN or infinity gets codes 0 and a NaN scale, which makes every
    output of `fp4_linear_w4a4` for that row NaN.
    """
    _check_quantize(x, codes, scales, 32)
    _kernels.quantize_mxfp4(x, codes, scales)


def quantize_nvfp4(
    x: Float32Array, input_scale: float, modelopt: bool, codes: NDArray[np.int8], scales: Float32Array
) -> None:
    """Quantize x [M, K] in blocks of 16: codes [M, K] (E2M1 value times two), scales [M, K/16] (E4M3 values).

    `input_scale` divides (compressed-tensors' input_global_scale) or, with `modelopt`, multiplies (its
    input_scale); it is not in `scales`, but belongs to the weight's `activation_scale`. Non-finite blocks as
    in `quantize_mxfp4`.
    """
    _check_quantize(x, codes, scales, 16)
    _kernels.quantize_nvfp4(x, input_scale, modelopt, codes, scales)


def rms_norm(x: Float32Array, weight: Float32Array, epsilon: float, out: Float32Array) -> None:
    """out[M, H] = weight * x / sqrt(mean(x^2) + epsilon). `out` may be `x`."""
    check_array("x", x, FLOAT32, (None, None))
    check_array("weight", weight, FLOAT32, (x.shape[1],))
    check_output("out", out, FLOAT32, x.shape)
    _kernels.rms_norm(x, weight, epsilon, out)


def add_rms_norm(
    x: Float32Array, residual: Float32Array, weight: Float32Array, epsilon: float, out: Float32Array
) -> None:
    """residual += x, then `rms_norm` of residual into out; all [M, H]. `out` may be `x`."""
    check_array("x", x, FLOAT32, (None, None))
    check_output("residual", residual, FLOAT32, x.shape)
    check_array("weight", weight, FLOAT32, (x.shape[1],))
    check_output("out", out, FLOAT32, x.shape)
    _kernels.add_rms_norm(x, residual, weight, epsilon, out)


def rope(q: Float32Array, positions: NDArray[np.int64], cos: Float32Array, sin: Float32Array) -> None:
    """Rotate q [M, num_heads, head_dim] in place; dimension i pairs with i + head_dim/2.

    positions [M] index rows of cos and sin [max_positions, head_dim/2]; ValueError for one outside them.
    """
    check_output("q", q, FLOAT32, (None, None, None))
    if q.shape[2] % 2:
        raise ValueError(f"q must have an even head_dim, got {q.shape[2]}")
    check_array("positions", positions, INT64, (q.shape[0],))
    check_array("cos", cos, FLOAT32, (None, q.shape[2] // 2))
    check_array("sin", sin, FLOAT32, cos.shape)
    _kernels.rope(q, positions, cos, sin)


def silu_mul(gate_up: Float32Array, out: Float32Array) -> None:
    """out[M, I] = silu(gate) * up, with gate_up [M, 2I] = [gate, up]."""
    check_array("gate_up", gate_up, FLOAT32, (None, None))
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have an even number of columns, got {gate_up.shape[1]}")
    check_output("out", out, FLOAT32, (gate_up.shape[0], gate_up.shape[1] // 2))
    _kernels.silu_mul(gate_up, out)


def embed(token_ids: NDArray[np.int32], table: NDArray[Any], out: Float32Array) -> None:
    """out[M, H] = table[token_ids] as float32; table [V, H] float32, float16, or bfloat16 as uint16 bits.

    ValueError for a token id outside the table.
    """
    check_array("token_ids", token_ids, INT32, (None,))
    check_array("table", table, DENSE_DTYPES, (None, None))
    check_output("out", out, FLOAT32, (token_ids.shape[0], table.shape[1]))
    _kernels.embed(token_ids, table, out)


def _check_caches(k_cache: NDArray[Any], v_cache: NDArray[Any]) -> None:
    check_array("k_cache", k_cache, _CACHE_DTYPES, (None, None, None, None))
    check_array("v_cache", v_cache, k_cache.dtype, k_cache.shape)


def _cache_head_dim(cache: NDArray[Any]) -> int:
    """The last dimension, without the byte that an FP8 cache holds for a row's scale."""
    return int(cache.shape[3]) - (1 if cache.dtype == UINT8 else 0)


def kv_write(
    k: Float32Array, v: Float32Array, slots: NDArray[np.int64], k_cache: NDArray[Any], v_cache: NDArray[Any]
) -> None:
    """Store k and v [M, num_kv_heads, head_dim] at slots [M] = block id * block_size + offset.

    Caches are [num_blocks, num_kv_heads, block_size, head_dim], float32, or bfloat16 as uint16 bits (round to
    nearest even), or uint8 [num_blocks, num_kv_heads, block_size, head_dim + 1] for FP8. FP8: the bytes of a
    block are E4M3 numbers [num_kv_heads, block_size, head_dim], then a byte b per row, [num_kv_heads,
    block_size]: 2^(b - 127) is its scale, the least that brings its largest magnitude to 448 or less; 255
    says that it held a NaN or an infinity and reads as NaN. bfloat16 and FP8 keys with a block_size that 16
    divides and a head_dim that 32 divides lie transposed in groups of 16 slots: a head's part of a block is
    [block_size / 16, head_dim / 2, 16, 2], the last two slot and dimension. Of rows for one slot the last one
    stays. ValueError, and nothing written, for a slot outside the cache.
    """
    _check_caches(k_cache, v_cache)
    check_output("k_cache", k_cache, _CACHE_DTYPES, k_cache.shape)
    check_output("v_cache", v_cache, _CACHE_DTYPES, v_cache.shape)
    check_array("k", k, FLOAT32, (None, k_cache.shape[1], _cache_head_dim(k_cache)))
    check_array("v", v, FLOAT32, k.shape)
    check_array("slots", slots, INT64, (k.shape[0],))
    _kernels.kv_write(k, v, slots, k_cache, v_cache)


def paged_attention(
    q: Float32Array,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    block_tables: NDArray[np.int32],
    query_starts: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    scale: float,
    sliding_window: int,
    out: Float32Array,
) -> None:
    """Causal attention of q [M, num_heads, head_dim] over the paged cache, into out of the same shape.

    Sequence s owns rows query_starts[s] to query_starts[s + 1] of q, the last of its context_lens[s]
    positions; block_tables [num_sequences, max_blocks] names its blocks in order. With a sliding_window w > 0
    the query at position i sees positions j with i - w < j <= i. A row's bits depend on its position and the
    cached values only, not on the block size. Caches as for `kv_write`. ValueError for a
    block id or a length outside the cache or the table. block_size is at most 256.
    """
    _check_caches(k_cache, v_cache)
    check_array("q", q, FLOAT32, (None, None, _cache_head_dim(k_cache)))
    check_array("context_lens", context_lens, INT32, (None,))
    check_array("block_tables", block_tables, INT32, (context_lens.shape[0], None))
    check_array("query_starts", query_starts, INT32, (context_lens.shape[0] + 1,))
    if sliding_window < 0:
        raise ValueError(f"sliding_window must be 0 (none) or positive, got {sliding_window}")
    check_output("out", out, FLOAT32, q.shape)
    _kernels.paged_attention(
        q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, sliding_window, out
    )


def route_top_k(logits: Float32Array, k: int) -> tuple[NDArray[np.int32], Float32Array]:
    """Experts of each row: ids int32 [M, k] (best first, ties to the lower id) and weights float32 [M, k].

    Softmax over all experts in float32, then the k largest, renormalised to sum 1.
    """
    check_array("logits", logits, FLOAT32, (None, None))
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be between 1 and the number of experts {logits.shape[1]}, got {k}")
    ids = np.empty((logits.shape[0], k), np.int32)
    weights = np.empty((logits.shape[0], k), np.float32)
    _kernels.route_top_k(logits, ids, weights)
    return ids, weights


def gather_rows(x: Float32Array, rows: NDArray[np.int64], out: Float32Array) -> None:
    """out[i] = x[rows[i]]. ValueError for a row outside x."""
    check_array("x", x, FLOAT32, (None, None))
    check_array("rows", rows, INT64, (None,))
    check_output("out", out, FLOAT32, (rows.shape[0], x.shape[1]))
    _kernels.gather_rows(x, rows, out)


def scatter_add_rows(
    y: Float32Array, rows: NDArray[np.int64], row_weights: Float32Array, out: Float32Array
) -> None:
    """out[rows[i]] += row_weights[i] * y[i] in ascending i; rows are int64.

    ValueError, and nothing added, for a row outside out. Call it once per expert in ascending expert id:
    then a row's sum does not depend on the batch.
    """
    check_array("y", y, FLOAT32, (None, None))
    check_array("rows", rows, INT64, (y.shape[0],))
    check_array("row_weights", row_weights, FLOAT32, (y.shape[0],))
    check_output("out", out, FLOAT32, (None, y.shape[1]))
    _kernels.scatter_add_rows(y, rows, row_weights, out)
