"""One sequence in a paged KV cache of the kernels, and attention over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.cpu import kernels, reference

Float32Array = NDArray[np.float32]


@dataclass
class CachedSequence:
    """One sequence in a shuffled cache whose unused slots hold NaN."""

    keys: NDArray[Any]
    values: NDArray[Any]
    block_table: NDArray[np.int32]
    k: Float32Array
    v: Float32Array
    """What the cache holds of each position, as float32."""

    def slots(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the cache holds these positions."""
        block_size = self.keys.shape[2]
        blocks = self.block_table[positions // block_size]
        slots: NDArray[np.int64] = blocks.astype(np.int64) * block_size + positions % block_size
        return slots


def fill_cache(
    rng: np.random.Generator, length: int, kv_heads: int, head_dim: int, block_size: int, dtype: str
) -> CachedSequence:
    """A sequence of `length` random keys and values; `dtype` is float32, bfloat16 or fp8."""
    num_blocks = -(-length // block_size) + 2
    shape = (num_blocks, kv_heads, block_size, head_dim)
    k = rng.standard_normal((length, kv_heads, head_dim)).astype(np.float32)
    v = rng.standard_normal((length, kv_heads, head_dim)).astype(np.float32)
    if dtype == "float32":
        caches = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    elif dtype == "fp8":
        caches = [np.full((*shape[:3], head_dim + 1), 0xFF, np.uint8) for _ in range(2)]
    else:
        caches = [np.full(shape, 0x7FC0, np.uint16) for _ in range(2)]
    block_table = rng.permutation(num_blocks).astype(np.int32)
    cached = CachedSequence(caches[0], caches[1], block_table, k, v)
    kernels.kv_write(k, v, cached.slots(np.arange(length)), cached.keys, cached.values)
    if dtype == "bfloat16":
        cached.k, cached.v = (a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in (k, v))
    if dtype == "fp8":
        cached.k, cached.v = reference.fp8_kv_rows(k), reference.fp8_kv_rows(v)
    return cached


def attend(
    cached: CachedSequence, q: Float32Array, first: int, window: int = 0, *, length: int | None = None
) -> Float32Array:
    """Attention of rows `q` at positions from `first` on, as one sequence."""
    out = np.full(q.shape, np.nan, np.float32)
    context = first + q.shape[0] if length is None else length
    kernels.paged_attention(
        q, cached.keys, cached.values, cached.block_table[None], np.array([0, q.shape[0]], np.int32),
        np.array([context], np.int32), q.shape[2] ** -0.5, window, out,
    )  # fmt: skip
    return out


def bits(values: Float32Array) -> NDArray[np.uint32]:
    """The numbers' bits: NaN equals NaN, and 0 is not -0."""
    return values.view(np.uint32)


def read_fp8_rows(cache: NDArray[np.uint8], *, in_groups: bool = False) -> Float32Array:
    """The numbers of an FP8 cache, [num_blocks, kv_heads, block_size, head_dim], by its documented layout."""
    num_blocks, kv_heads, block_size, row_bytes = cache.shape
    shape = (num_blocks, kv_heads, block_size, row_bytes - 1)
    block = cache.reshape(num_blocks, -1)
    codes, scales = np.split(block, [kv_heads * block_size * (row_bytes - 1)], axis=1)
    numbers: Float32Array = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    if in_groups:  # slots before pairs of dimensions
        pairs = numbers.reshape(num_blocks, kv_heads, block_size // 16, (row_bytes - 1) // 2, 16, 2)
        numbers = pairs.swapaxes(3, 4)
    scales = scales.reshape(*shape[:3], 1)
    rows: Float32Array = np.ldexp(numbers.reshape(shape), scales.astype(np.int32) - 127)
    return np.where(scales == 255, np.float32(np.nan), rows)
