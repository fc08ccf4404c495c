"""The FP8 KV cache: its numbers and scales, and attention over scales of any size."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference
from tests.support.paged_attention import CachedSequence, attend, bits, fill_cache, read_fp8_rows

Float32Array = NDArray[np.float32]


def test_rows_are_e4m3_times_a_power_of_two_per_row(isa: str, rng: np.random.Generator) -> None:
    """Every magnitude float32 has, subnormals and the largest included, and what has no magnitude."""
    rows = rng.standard_normal((300, 2, 40)).astype(np.float32)
    exponents = rng.integers(-140, 127, 300)
    rows = np.ldexp(rows, exponents[:, None, None], dtype=np.float32)
    rows[0], rows[1, 0], rows[1, 1] = 0.0, 448.0, 448.1
    rows[2] = np.linspace(-3.4e38, 3.4e38, 40, dtype=np.float32)
    rows[3, 0, 5], rows[4, 1, 6] = np.nan, -np.inf
    caches = [np.full((20, 2, 16, 41), 7, np.uint8) for _ in range(2)]
    slots = rng.permutation(320)[:300].astype(np.int64)
    kernels.kv_write(rows, -rows, slots, caches[0], caches[1])
    want = reference.fp8_kv_rows(rows)
    for cache, sign in zip(caches, (1, -1), strict=True):
        got = read_fp8_rows(cache)[slots // 16, :, slots % 16]
        np.testing.assert_array_equal(got, sign * want)
    assert np.isnan(want[3, 0]).all()
    assert not np.isnan(want[3, 1]).any()
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    is_ordinary = (largest > 1e-30) & (largest < 448 * 2.0**119)  # larger ones are cut off there
    error = np.where(is_ordinary, np.abs(want - rows) / np.where(is_ordinary, largest, 1), 0)
    assert error.max() < 2**-4


def write_rows(cached: CachedSequence, k: Float32Array, v: Float32Array) -> None:
    """Other keys and values for the positions of `cached`, an FP8 cache."""
    kernels.kv_write(k, v, cached.slots(np.arange(len(k))), cached.keys, cached.values)
    cached.k, cached.v = reference.fp8_kv_rows(k), reference.fp8_kv_rows(v)


@pytest.mark.parametrize("head_dim", [48, 64, 96])
def test_scales_of_any_size_give_the_same_bits_on_every_way(
    isa: str, rng: np.random.Generator, head_dim: int
) -> None:
    """Keys and values from 2^-60 to 2^60 beside each other; rows of zeros, which have the least scale."""
    exponents = rng.integers(-60, 60, (2, 90, 2, 1))
    rows = rng.standard_normal((2, 90, 2, head_dim)).astype(np.float32)
    k, v = np.ldexp(rows, np.stack([exponents[0] // 20, exponents[1]]), dtype=np.float32)
    k[7], v[7], k[70], v[71] = 0.0, 0.0, 0.0, 0.0
    q = rng.standard_normal((90, 4, head_dim)).astype(np.float32)
    outs = []
    for block_size in (16, 24, 48):
        cached = fill_cache(np.random.default_rng(5), 90, 2, head_dim, block_size, "fp8")
        write_rows(cached, k, v)
        whole = attend(cached, q, 0)
        want = reference.attention(q, cached.k, cached.v, 0, head_dim**-0.5, 0)
        largest = np.maximum.accumulate(np.abs(cached.v).max(axis=-1), axis=0).repeat(2, axis=1)[..., None]
        np.testing.assert_allclose(whole / largest, want / largest, rtol=0, atol=3e-6)
        outs.append(whole)
        outs.append(np.concatenate([attend(cached, q[i : i + 1].copy(), i) for i in range(90)]))
    for out in outs[1:]:
        np.testing.assert_array_equal(bits(out), bits(outs[0]))


def test_values_count_for_nothing_where_weight_times_scale_is_subnormal(isa: str) -> None:
    """Position 0 has a weight of 2^-120 and values of 2^-20, position 1 all the rest and zeros."""
    cached = fill_cache(np.random.default_rng(5), 2, 1, 32, 16, "fp8")
    k, v = np.zeros((2, 2, 1, 32), np.float32)
    k[1, 0, 0], v[0] = 1.0, 2.0**-20
    write_rows(cached, k, v)
    q = np.zeros((1, 1, 32), np.float32)
    q[0, 0, 0] = 120 * np.log(2.0) * 32**0.5
    np.testing.assert_array_equal(attend(cached, q, 1), 0.0)
    v[0] = 2.0**20
    write_rows(cached, k, v)
    np.testing.assert_allclose(attend(cached, q, 1), 2.0**-100, rtol=1e-4)
