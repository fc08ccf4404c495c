"""Typed facade over the compiled kernels.

Every function checks types, shapes and contiguity once and raises TypeError or ValueError naming the
argument; the C++ side checks indices (token ids, slots, block ids, positions) before any access and raises
ValueError. Outputs are written in place. No kernel's result for a row depends on the other rows of the call,
nor on their number or the number of threads. `engines.cpu.reference` says what each kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels

Float32Array = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_INT8 = np.dtype(np.int8)
_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)
_DENSE_DTYPES = (_FLOAT32, np.dtype(np.float16), np.dtype(np.uint16))
_CACHE_DTYPES = (_FLOAT32, np.dtype(np.uint16), _UINT8)


def isa_name() -> str:
    """Instruction set in use: plain, avx2, avx512-vnni, avx512 or amx; NYBBLE_CPU_ISA or `set_isa` choose."""
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


def _check(
    name: str,
    array: NDArray[Any],
    dtypes: tuple[np.dtype[Any], ...] | np.dtype[Any],
    shape: tuple[int | None, ...],
) -> None:
    """`shape` has None where any length will do."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if array.dtype not in allowed:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, allowed))}, got {array.dtype}")
    if array.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")


def _check_out(
    name: str,
    array: NDArray[Any],
    dtypes: tuple[np.dtype[Any], ...] | np.dtype[Any],
    shape: tuple[int | None, ...],
) -> None:
    _check(name, array, dtypes, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable")


class Fp4Shard(NamedTuple):
    """One FP4 matrix as a checkpoint stores it."""

    packed: NDArray[np.uint8]
    """[N, K/2]; the low nibble is the even column."""
    scales: NDArray[np.uint8]
    """[N, K/group_size], the scales' bits (E8M0 or E4M3)."""
    scale_table: Float32Array
    """[256], scale bits -> float32 multiplier with the global scale folded in."""


class Fp4Weight:
    """FP4 weight [num_rows, num_columns] repacked for the kernels; the shards may be freed afterwards.

    Several shards (q, k and v, say) stack along the rows, each with its own scale table; table entries in use
    must not be negative. `round_to_bfloat16` makes `decode` and `fp4_linear_f32` round every decoded value to
    bfloat16; `fp4_linear_w4a4` ignores it, and is alone in multiplying its sums by `activation_scale`: what
    `quantize_nvfp4` leaves out of its scales.
    """

    __slots__ = ("handle",)

    def __init__(
        self,
        shards: Sequence[Fp4Shard],
        group_size: int,
        round_to_bfloat16: bool = False,
        activation_scale: float = 1.0,
    ) -> None:
        if group_size not in (16, 32):
            raise ValueError(f"group_size must be 16 or 32, got {group_size}")
        if not shards:
            raise ValueError("shards is empty: an FP4 weight needs at least one")
        num_columns = 2 * shards[0][0].shape[-1]
        if num_columns == 0 or num_columns % group_size:
            raise ValueError(
                f"packed holds {num_columns} columns, expected a positive multiple of {group_size}"
            )
        for i, (packed, scales, scale_table) in enumerate(shards):
            _check(f"shards[{i}] packed", packed, _UINT8, (None, num_columns // 2))
            if packed.shape[0] == 0:
                raise ValueError(f"shards[{i}] packed has no rows")
            _check(f"shards[{i}] scales", scales, _UINT8, (packed.shape[0], num_columns // group_size))
            _check(f"shards[{i}] scale_table", scale_table, _FLOAT32, (256,))
        self.handle = _kernels.Fp4Weight(list(shards), group_size, round_to_bfloat16, activation_scale)

    @property
    def num_rows(self) -> int:
        return self.handle.num_rows

    @property
    def num_columns(self) -> int:
        return self.handle.num_columns

    @property
    def group_size(self) -> int:
        return self.handle.group_size

    @property
    def round_to_bfloat16(self) -> bool:
        return self.handle.round_to_bfloat16

    @property
    def num_bytes(self) -> int:
        return self.handle.num_bytes

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard, in order."""
        return self.handle.shard_rows

    def decode(self) -> Float32Array:
        """Dequantized weight, float32 [num_rows, num_columns]."""
        return self.handle.decode()


class DenseWeight:
    """Unquantized weight [N, K] repacked for `dense_linear`: float32, float16, or bfloat16 as uint16 bits."""

    __slots__ = ("handle",)

    def __init__(self, values: NDArray[Any]) -> None:
        _check("values", values, _DENSE_DTYPES, (None, None))
        if 0 in values.shape:
            raise ValueError(f"values must not be empty, got shape {list(values.shape)}")
        self.handle = _kernels.DenseWeight(values)

    @property
    def num_rows(self) -> int:
        return self.handle.num_rows

    @property
    def num_columns(self) -> int:
        return self.handle.num_columns

    @property
    def num_bytes(self) -> int:
        return self.handle.num_bytes


def fp4_linear_w4a4(
    codes: NDArray[np.int8], scales: Float32Array, weight: Fp4Weight, out: Float32Array
) -> None:
    """out[M, N] = quantized activations times weight, transposed.

    codes [M, K] is the E2M1 value times two (-12..12), scales [M, K/group_size] its multipliers, both as
    `quantize_mxfp4` and `quantize_nvfp4` write them; the weight's `activation_scale` is applied to the sums.
    Bit-identical on every instruction set.
    """
    columns = weight.num_columns
    _check("codes", codes, _INT8, (None, columns))
    _check("scales", scales, _FLOAT32, (codes.shape[0], columns // weight.group_size))
    _check_out("out", out, _FLOAT32, (codes.shape[0], weight.num_rows))
    _kernels.fp4_linear_w4a4(codes, scales, weight.handle, out)


def fp4_linear_w4a16(x: Float32Array, weight: Fp4Weight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the decoded weight, transposed, for activations that nobody quantized.

    Where the processor has integer dot products, x enters as 16-bit integers that share a power of two per
    128 columns (MXFP4) or 16 (NVFP4): an error of at most 2^-15 of the largest magnitude among them, 1/64 of
    what bfloat16 may do to that largest one. With AMX bfloat16 tiles, for NVFP4, they have 8 significant
    bits: off by at most 2^-9 of the value or 2^-12 of the largest. Elsewhere it is `fp4_linear_f32`.
    `round_to_bfloat16` of the weight is ignored.
    """
    _check("x", x, _FLOAT32, (None, weight.num_columns))
    _check_out("out", out, _FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.fp4_linear_w4a16(x, weight.handle, out)


def fp4_linear_f32(x: Float32Array, weight: Fp4Weight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the decoded weight, transposed, summed in float32."""
    _check("x", x, _FLOAT32, (None, weight.num_columns))
    _check_out("out", out, _FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.fp4_linear_f32(x, weight.handle, out)


def dense_linear(x: Float32Array, weight: DenseWeight, out: Float32Array) -> None:
    """out[M, N] = x[M, K] times the weight, transposed, summed in float32."""
    _check("x", x, _FLOAT32, (None, weight.num_columns))
    _check_out("out", out, _FLOAT32, (x.shape[0], weight.num_rows))
    _kernels.dense_linear(x, weight.handle, out)


def _check_quantize(x: Float32Array, codes: NDArray[np.int8], scales: Float32Array, group_size: int) -> None:
    _check("x", x, _FLOAT32, (None, None))
    rows, columns = x.shape
    if columns % group_size:
        raise ValueError(f"x has {columns} columns, expected a multiple of the group size {group_size}")
    _check_out("codes", codes, _INT8, (rows, columns))
    _check_out("scales", scales, _FLOAT32, (rows, columns // group_size))


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
    _check("x", x, _FLOAT32, (None, None))
    _check("weight", weight, _FLOAT32, (x.shape[1],))
    _check_out("out", out, _FLOAT32, x.shape)
    _kernels.rms_norm(x, weight, epsilon, out)


def add_rms_norm(
    x: Float32Array, residual: Float32Array, weight: Float32Array, epsilon: float, out: Float32Array
) -> None:
    """residual += x, then `rms_norm` of residual into out; all [M, H]. `out` may be `x`."""
    _check("x", x, _FLOAT32, (None, None))
    _check_out("residual", residual, _FLOAT32, x.shape)
    _check("weight", weight, _FLOAT32, (x.shape[1],))
    _check_out("out", out, _FLOAT32, x.shape)
    _kernels.add_rms_norm(x, residual, weight, epsilon, out)


def rope(q: Float32Array, positions: NDArray[np.int64], cos: Float32Array, sin: Float32Array) -> None:
    """Rotate q [M, num_heads, head_dim] in place; dimension i pairs with i + head_dim/2.

    positions [M] index rows of cos and sin [max_positions, head_dim/2]; ValueError for one outside them.
    """
    _check_out("q", q, _FLOAT32, (None, None, None))
    if q.shape[2] % 2:
        raise ValueError(f"q must have an even head_dim, got {q.shape[2]}")
    _check("positions", positions, _INT64, (q.shape[0],))
    _check("cos", cos, _FLOAT32, (None, q.shape[2] // 2))
    _check("sin", sin, _FLOAT32, cos.shape)
    _kernels.rope(q, positions, cos, sin)


def silu_mul(gate_up: Float32Array, out: Float32Array) -> None:
    """out[M, I] = silu(gate) * up, with gate_up [M, 2I] = [gate, up]."""
    _check("gate_up", gate_up, _FLOAT32, (None, None))
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have an even number of columns, got {gate_up.shape[1]}")
    _check_out("out", out, _FLOAT32, (gate_up.shape[0], gate_up.shape[1] // 2))
    _kernels.silu_mul(gate_up, out)


def embed(token_ids: NDArray[np.int32], table: NDArray[Any], out: Float32Array) -> None:
    """out[M, H] = table[token_ids] as float32; table [V, H] float32, float16, or bfloat16 as uint16 bits.

    ValueError for a token id outside the table.
    """
    _check("token_ids", token_ids, _INT32, (None,))
    _check("table", table, _DENSE_DTYPES, (None, None))
    _check_out("out", out, _FLOAT32, (token_ids.shape[0], table.shape[1]))
    _kernels.embed(token_ids, table, out)


def _check_caches(k_cache: NDArray[Any], v_cache: NDArray[Any]) -> None:
    _check("k_cache", k_cache, _CACHE_DTYPES, (None, None, None, None))
    _check("v_cache", v_cache, k_cache.dtype, k_cache.shape)


def _cache_head_dim(cache: NDArray[Any]) -> int:
    """The last dimension, without the byte that an FP8 cache holds for a row's scale."""
    return int(cache.shape[3]) - (1 if cache.dtype == _UINT8 else 0)


def kv_write(
    k: Float32Array, v: Float32Array, slots: NDArray[np.int64], k_cache: NDArray[Any], v_cache: NDArray[Any]
) -> None:
    """Store k and v [M, num_kv_heads, head_dim] at slots [M] = block id * block_size + offset.

    Caches are [num_blocks, num_kv_heads, block_size, head_dim], float32, or bfloat16 as uint16 bits (round to
    nearest even), or uint8 [num_blocks, num_kv_heads, block_size, head_dim + 1] for FP8. bfloat16 keys with a
    block_size that 16 divides and a head_dim that 32 divides lie transposed in groups of 16 slots: a head's
    part of a block is [block_size / 16, head_dim / 2, 16, 2], the last two slot and dimension. FP8: the bytes
    of a block's head are block_size rows of head_dim E4M3 numbers, then a byte b per row: 2^(b - 127) is its
    scale, the least that brings its largest magnitude to 448 or less; 255 says that it held a NaN or an
    infinity and reads as NaN. Of rows for one slot the last one stays. ValueError, and nothing written, for a
    slot outside the cache.
    """
    _check_caches(k_cache, v_cache)
    _check_out("k_cache", k_cache, _CACHE_DTYPES, k_cache.shape)
    _check_out("v_cache", v_cache, _CACHE_DTYPES, v_cache.shape)
    _check("k", k, _FLOAT32, (None, k_cache.shape[1], _cache_head_dim(k_cache)))
    _check("v", v, _FLOAT32, k.shape)
    _check("slots", slots, _INT64, (k.shape[0],))
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
    _check("q", q, _FLOAT32, (None, None, _cache_head_dim(k_cache)))
    _check("context_lens", context_lens, _INT32, (None,))
    _check("block_tables", block_tables, _INT32, (context_lens.shape[0], None))
    _check("query_starts", query_starts, _INT32, (context_lens.shape[0] + 1,))
    if sliding_window < 0:
        raise ValueError(f"sliding_window must be 0 (none) or positive, got {sliding_window}")
    _check_out("out", out, _FLOAT32, q.shape)
    _kernels.paged_attention(
        q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, sliding_window, out
    )


def route_top_k(logits: Float32Array, k: int) -> tuple[NDArray[np.int32], Float32Array]:
    """Experts of each row: ids int32 [M, k] (best first, ties to the lower id) and weights float32 [M, k].

    Softmax over all experts in float32, then the k largest, renormalised to sum 1.
    """
    _check("logits", logits, _FLOAT32, (None, None))
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be between 1 and the number of experts {logits.shape[1]}, got {k}")
    ids = np.empty((logits.shape[0], k), np.int32)
    weights = np.empty((logits.shape[0], k), np.float32)
    _kernels.route_top_k(logits, ids, weights)
    return ids, weights


def gather_rows(x: Float32Array, rows: NDArray[np.int64], out: Float32Array) -> None:
    """out[i] = x[rows[i]]. ValueError for a row outside x."""
    _check("x", x, _FLOAT32, (None, None))
    _check("rows", rows, _INT64, (None,))
    _check_out("out", out, _FLOAT32, (rows.shape[0], x.shape[1]))
    _kernels.gather_rows(x, rows, out)


def scatter_add_rows(
    y: Float32Array, rows: NDArray[np.int64], row_weights: Float32Array, out: Float32Array
) -> None:
    """out[rows[i]] += row_weights[i] * y[i] in ascending i; rows are int64.

    ValueError, and nothing added, for a row outside out. Call it once per expert in ascending expert id:
    then a row's sum does not depend on the batch.
    """
    _check("y", y, _FLOAT32, (None, None))
    _check("rows", rows, _INT64, (y.shape[0],))
    _check("row_weights", row_weights, _FLOAT32, (y.shape[0],))
    _check_out("out", out, _FLOAT32, (None, y.shape[1]))
    _kernels.scatter_add_rows(y, rows, row_weights, out)


class LogitsPeak(NamedTuple):
    """The largest of a row of logits, the first of equal ones."""

    token_id: int
    logit: float
    all_finite: bool
    """Of the row."""


def logits_peak(logits: Float32Array) -> LogitsPeak:
    """The largest of float32 [vocab_size] logits, at least one."""
    _check("logits", logits, _FLOAT32, (None,))
    return LogitsPeak(*_kernels.logits_peak(logits))


def token_weights(
    logits: Float32Array, maximum: float, inverse_temperature: float, scale: float
) -> Float32Array:
    """scale * exp((logit - maximum) * inverse_temperature) to the nearest whole number, ties to even."""
    _check("logits", logits, _FLOAT32, (None,))
    weights = np.empty_like(logits)
    _kernels.token_weights(logits, maximum, inverse_temperature, scale, weights)
    return weights


def draw_token(
    logits: Float32Array,
    inverse_temperature: float,
    weight_scale: float,
    min_p_distance: float,
    top_k: int,
    top_p: float,
    uniform: float,
) -> int:
    """The token at which the running sum of the weights that the filters leave passes `uniform` of the whole.

    Weights are those of `token_weights` and must sum to less than 2^53. Logits more than `min_p_distance`
    below the largest are left out first (infinity: none), then all but the `top_k` largest (0: all), then
    all but the fewest likeliest whose share reaches `top_p` (1: all); of equal ones lower ids are kept.
    """
    _check("logits", logits, _FLOAT32, (None,))
    return _kernels.draw_token(
        logits, inverse_temperature, weight_scale, min_p_distance, top_k, top_p, uniform
    )


def philox_uniform(seed: int, position: int) -> float:
    """NumPy's `Generator(Philox(key=seed, counter=position)).random()`, for 0 <= seed, position < 2^64."""
    return _kernels.philox_uniform(seed, position)
