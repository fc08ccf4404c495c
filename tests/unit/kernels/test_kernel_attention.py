"""Paged attention: against the reference, and the same bits however a sequence is cut into steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference

Float32Array = NDArray[np.float32]


@dataclass
class Cached:
    """One sequence in a shuffled cache whose unused slots hold NaN."""

    keys: NDArray[Any]
    values: NDArray[Any]
    block_table: NDArray[np.int32]
    k: Float32Array
    v: Float32Array
    """What the cache holds of each position, as float32."""


def fill_cache(
    rng: np.random.Generator, length: int, kv_heads: int, head_dim: int, block_size: int, dtype: str
) -> Cached:
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
    positions = np.arange(length)
    slots = block_table[positions // block_size].astype(np.int64) * block_size + positions % block_size
    kernels.kv_write(k, v, slots, caches[0], caches[1])
    if dtype == "bfloat16":
        k, v = (a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in (k, v))
    if dtype == "fp8":
        k, v = reference.fp8_kv_rows(k), reference.fp8_kv_rows(v)
    return Cached(caches[0], caches[1], block_table, k, v)


def attend(
    cached: Cached, q: Float32Array, first: int, window: int = 0, *, length: int | None = None
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
    return values.view(np.uint32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize("head_dim", [32, 40, 64, 80, 128])
def test_matches_the_reference(
    isa: str, rng: np.random.Generator, head_dim: int, heads: int, kv_heads: int, dtype: str
) -> None:
    cached = fill_cache(rng, 41, kv_heads, head_dim, 16, dtype)
    q = rng.standard_normal((19, heads, head_dim)).astype(np.float32)
    got = attend(cached, q, 22)
    want = reference.attention(q, cached.k, cached.v, 22, head_dim**-0.5, 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("window", [1, 2, 7, 16, 17, 40, 1000])
@pytest.mark.parametrize("block_size", [1, 4, 16, 24, 256])
def test_sliding_window(isa: str, rng: np.random.Generator, block_size: int, window: int) -> None:
    cached = fill_cache(rng, 53, 2, 32, block_size, "float32")
    q = rng.standard_normal((53, 4, 32)).astype(np.float32)
    want = reference.attention(q, cached.k, cached.v, 0, 32**-0.5, window)
    np.testing.assert_allclose(attend(cached, q, 0, window), want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("window", [0, 19])
@pytest.mark.parametrize("block_size", [4, 16, 24])
def test_any_cut_into_steps_gives_the_same_bits(
    isa: str, rng: np.random.Generator, block_size: int, window: int, dtype: str
) -> None:
    """Whole prefill, one row at a time (decode), and uneven chunks (chunked prefill, reused prefix)."""
    cached = fill_cache(rng, 61, 2, 64, block_size, dtype)
    q = rng.standard_normal((61, 6, 64)).astype(np.float32)
    whole = attend(cached, q, 0, window)
    for cuts in (list(range(62)), [0, 3, 20, 21, 60, 61], [0, 32, 61]):
        parts = [attend(cached, np.ascontiguousarray(q[a:b]), a, window) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(bits(np.concatenate(parts)), bits(whole))


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize("window", [0, 600])
def test_partitions_and_threads_give_the_same_bits(
    isa: str, rng: np.random.Generator, window: int, dtype: str, restore_threads: None
) -> None:
    """Positions past the first partitions, whose softmaxes several threads may work on at once."""
    cached = fill_cache(rng, 1100, 2, 32, 16, dtype)
    q = rng.standard_normal((1100, 6, 32)).astype(np.float32)
    kernels.set_num_threads(1)
    whole = attend(cached, q, 0, window)
    want = reference.attention(q, cached.k, cached.v, 0, 32**-0.5, window)
    np.testing.assert_allclose(whole, want, rtol=0, atol=3e-6)
    for count in (1, 2, 7):
        kernels.set_num_threads(count)
        for first, last in pairwise([0, 1, 511, 512, 513, 575, 577, 1023, 1024, 1026, 1099, 1100]):
            part = attend(cached, np.ascontiguousarray(q[first:last]), first, window)
            np.testing.assert_array_equal(bits(part), bits(whole[first:last]), f"{first}, {count} threads")


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize("head_dim", [48, 64])
@pytest.mark.parametrize("num_rows", [90, 1])
def test_the_block_size_does_not_change_a_bit(
    isa: str, rng: np.random.Generator, num_rows: int, head_dim: int, dtype: str
) -> None:
    q = rng.standard_normal((num_rows, 4, head_dim)).astype(np.float32)
    outs = []
    for block_size in (1, 16, 24, 32, 48, 64, 100):
        cached = fill_cache(np.random.default_rng(5), 90, 2, head_dim, block_size, dtype)
        outs.append(bits(attend(cached, q, 90 - num_rows)))
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("num_rows", [70, 2])
@pytest.mark.parametrize("block_size", [16, 24])
def test_a_row_does_not_see_what_later_rows_of_its_chunk_hold(
    isa: str, rng: np.random.Generator, block_size: int, num_rows: int, dtype: str
) -> None:
    cached = fill_cache(rng, 70, 2, 32, block_size, dtype)
    q = rng.standard_normal((70, 4, 32)).astype(np.float32)
    first = (
        0 if num_rows == 70 else 29
    )  # the last row before those that later hold NaN, and the first of them
    q = q[first : first + num_rows].copy()
    want = attend(cached, q, first)
    poison = np.full((40, 2, 32), np.nan, np.float32)
    positions = np.arange(30, 70)
    slots = cached.block_table[positions // block_size].astype(np.int64) * block_size + positions % block_size
    kernels.kv_write(poison, poison, slots, cached.keys, cached.values)
    got = attend(cached, q, first)
    np.testing.assert_array_equal(bits(got[: 30 - first]), bits(want[: 30 - first]))
    assert np.isnan(got[30 - first :]).all()


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_a_sequence_in_a_batch_has_the_bits_it_has_alone(
    isa: str, rng: np.random.Generator, dtype: str, window: int, num_threads: int, restore_threads: None
) -> None:
    """Decode, speculation and prefill together; a context of one token, of whole tiles, and longer ones."""
    lengths, news = [37, 5, 90, 700, 1, 128, 65], [1, 5, 20, 2, 1, 3, 1]
    cached = fill_cache(rng, 768, 5, 64, 16, dtype)
    keys, values = cached.keys, cached.values
    tables = np.stack([np.roll(cached.block_table, shift)[:44] for shift in range(7)]).copy()
    filled = {"float32": np.float32(0.5), "bfloat16": np.uint16(0x3F00), "fp8": np.uint8(0x30)}[dtype]
    for block in set(range(len(keys))) - set(cached.block_table[:48].tolist()):
        keys[block] = values[block] = filled
    q = rng.standard_normal((sum(news), 20, 64)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(news)]).astype(np.int32)
    out = np.empty_like(q)
    kernels.set_num_threads(num_threads)
    contexts = np.array(lengths, np.int32)
    kernels.paged_attention(q, keys, values, tables, starts, contexts, 0.125, window, out)
    assert np.isfinite(out).all()
    kernels.set_num_threads(1)
    for i, (length, new) in enumerate(zip(lengths, news, strict=True)):
        rows = np.ascontiguousarray(q[starts[i] : starts[i + 1]])
        alone = Cached(keys, values, tables[i], cached.k, cached.v)
        np.testing.assert_array_equal(
            bits(attend(alone, rows, length - new, window)), bits(out[starts[i] : starts[i + 1]])
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize("context", [1, 16, 17, 64, 65, 512, 513, 900])
@pytest.mark.parametrize("kv_heads", [1, 3, 8])
def test_heads_spread_over_threads_give_the_same_bits(
    isa: str, rng: np.random.Generator, kv_heads: int, context: int, dtype: str, restore_threads: None
) -> None:
    """One sequence: few enough pieces of work that threads share its partitions, then its KV heads."""
    cached = fill_cache(rng, context, kv_heads, 64, 16, dtype)
    q = rng.standard_normal((1, 4 * kv_heads, 64)).astype(np.float32)
    want = reference.attention(q, cached.k, cached.v, context - 1, 64**-0.5, 0)
    kernels.set_num_threads(1)
    alone = attend(cached, q, context - 1)
    np.testing.assert_allclose(alone, want, rtol=0, atol=3e-6)
    for count in (2, 3, 16):
        kernels.set_num_threads(count)
        np.testing.assert_array_equal(bits(attend(cached, q, context - 1)), bits(alone), f"{count} threads")


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 16), (32, 48), (64, 24), (48, 16)])
def test_keys_lie_in_groups_of_slots_where_they_can(
    isa: str, rng: np.random.Generator, head_dim: int, block_size: int, dtype: str
) -> None:
    k = rng.integers(-8, 8, (3 * block_size, 2, head_dim)).astype(np.float32)  # exact in both caches
    row_elements = head_dim + 1 if dtype == "fp8" else head_dim
    stored = {"bfloat16": np.uint16, "fp8": np.uint8}[dtype]
    caches: list[NDArray[Any]] = [np.zeros((3, 2, block_size, row_elements), stored) for _ in range(2)]
    kernels.kv_write(k, -k, np.arange(3 * block_size), caches[0], caches[1])
    rows = k.reshape(3, block_size, 2, head_dim).swapaxes(1, 2)
    in_groups = block_size % 16 == 0 and head_dim % 32 == 0
    if dtype == "fp8":
        np.testing.assert_array_equal(read_fp8_rows(caches[0], in_groups=in_groups), rows)
        np.testing.assert_array_equal(read_fp8_rows(caches[1]), -rows)
        return
    np.testing.assert_array_equal(caches[1].view(ml_dtypes.bfloat16).astype(np.float32), -rows)
    if in_groups:
        groups = rows.reshape(3, 2, block_size // 16, 16, head_dim // 2, 2)
        rows = groups.swapaxes(3, 4).reshape(rows.shape)
    np.testing.assert_array_equal(caches[0].view(ml_dtypes.bfloat16).astype(np.float32), rows)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_of_two_rows_for_one_slot_the_later_one_stays(
    isa: str, rng: np.random.Generator, dtype: str, num_threads: int, restore_threads: None
) -> None:
    kernels.set_num_threads(num_threads)
    num_rows = 600  # enough work for several threads
    slots = rng.integers(0, 64, num_rows)
    k = rng.integers(-8, 8, (num_rows, 4, 40)).astype(np.float32)  # whole numbers: exact in every cache
    stored = {"float32": np.float32, "bfloat16": np.uint16, "fp8": np.uint8}[dtype]
    caches = [np.zeros((4, 4, 16, 41 if dtype == "fp8" else 40), stored) for _ in range(2)]
    kernels.kv_write(k, -k, slots, caches[0], caches[1])
    last = {int(slot): row for row, slot in enumerate(slots)}
    for cache, sign in zip(caches, (1, -1), strict=True):
        if dtype == "fp8":
            floats = read_fp8_rows(cache)
        else:
            floats = cache if dtype == "float32" else cache.view(ml_dtypes.bfloat16).astype(np.float32)
        for slot, row in last.items():
            np.testing.assert_array_equal(floats[slot // 16, :, slot % 16], sign * k[row])


def test_far_apart_scores_do_not_overflow(isa: str, rng: np.random.Generator) -> None:
    cached = fill_cache(rng, 40, 1, 32, 16, "float32")
    q = (1e4 * rng.standard_normal((40, 2, 32))).astype(np.float32)
    want = reference.attention(q, cached.k, cached.v, 0, 32**-0.5, 0)
    np.testing.assert_allclose(attend(cached, q, 0), want, rtol=0, atol=2e-2)


def test_bfloat16_cache_rounds_to_nearest_even(isa: str) -> None:
    values = np.array(
        [1.0, 1.00390625, 1.01171875, -1.00390625, np.inf, -0.0, 3.4e38, np.nan] * 4, np.float32
    )
    k = values.reshape(1, 1, 32)
    caches = [np.zeros((2, 1, 4, 32), np.uint16) for _ in range(2)]
    kernels.kv_write(k, -k, np.array([6], np.int64), caches[0], caches[1])
    want = values.astype(ml_dtypes.bfloat16)
    stored = caches[0][1, 0, 2].view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(stored, want.astype(np.float32))
    np.testing.assert_array_equal(
        caches[1][1, 0, 2].view(ml_dtypes.bfloat16).astype(np.float32), -want.astype(np.float32)
    )
    caches[0][1, 0, 2] = 0
    assert not caches[0].any()


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


def test_fp8_rows_are_e4m3_times_a_power_of_two_per_row(isa: str, rng: np.random.Generator) -> None:
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


def write_rows(cached: Cached, block_size: int, k: Float32Array, v: Float32Array) -> None:
    """Other keys and values for the positions of `cached`, an FP8 cache."""
    positions = np.arange(len(k))
    slots = cached.block_table[positions // block_size].astype(np.int64) * block_size + positions % block_size
    kernels.kv_write(k, v, slots, cached.keys, cached.values)
    cached.k, cached.v = reference.fp8_kv_rows(k), reference.fp8_kv_rows(v)


@pytest.mark.parametrize("head_dim", [48, 64, 96])
def test_fp8_scales_of_any_size_give_the_same_bits_on_every_way(
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
        write_rows(cached, block_size, k, v)
        whole = attend(cached, q, 0)
        want = reference.attention(q, cached.k, cached.v, 0, head_dim**-0.5, 0)
        largest = np.maximum.accumulate(np.abs(cached.v).max(axis=-1), axis=0).repeat(2, axis=1)[..., None]
        np.testing.assert_allclose(whole / largest, want / largest, rtol=0, atol=3e-6)
        outs.append(whole)
        outs.append(np.concatenate([attend(cached, q[i : i + 1].copy(), i) for i in range(90)]))
    for out in outs[1:]:
        np.testing.assert_array_equal(bits(out), bits(outs[0]))


def test_fp8_values_count_for_nothing_where_weight_times_scale_is_subnormal(isa: str) -> None:
    """Position 0 has a weight of 2^-120 and values of 2^-20, position 1 all the rest and zeros."""
    cached = fill_cache(np.random.default_rng(5), 2, 1, 32, 16, "fp8")
    k, v = np.zeros((2, 2, 1, 32), np.float32)
    k[1, 0, 0], v[0] = 1.0, 2.0**-20
    write_rows(cached, 16, k, v)
    q = np.zeros((1, 1, 32), np.float32)
    q[0, 0, 0] = 120 * np.log(2.0) * 32**0.5
    np.testing.assert_array_equal(attend(cached, q, 1), 0.0)
    v[0] = 2.0**20
    write_rows(cached, 16, k, v)
    np.testing.assert_allclose(attend(cached, q, 1), 2.0**-100, rtol=1e-4)


def batch_arguments(rng: np.random.Generator) -> dict[str, Any]:
    cached = fill_cache(rng, 40, 2, 32, 16, "float32")
    q = rng.standard_normal((3, 4, 32)).astype(np.float32)
    return {
        "q": q,
        "k_cache": cached.keys,
        "v_cache": cached.values,
        "block_tables": cached.block_table[None].copy(),
        "query_starts": np.array([0, 3], np.int32),
        "context_lens": np.array([40], np.int32),
        "scale": 1.0,
        "sliding_window": 0,
        "out": np.zeros_like(q),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["block_tables"].__setitem__((0, 1), 5), r"block_tables\[0\]\[1\] is 5"),
        (lambda a: a["block_tables"].__setitem__((0, 2), -1), r"block_tables\[0\]\[2\] is -1"),
        (lambda a: a["context_lens"].__setitem__(0, 81), r"context_lens\[0\] is 81"),
        (lambda a: a["context_lens"].__setitem__(0, 2), r"context_lens\[0\] is 2"),
        (lambda a: a["query_starts"].__setitem__(1, 2), "query_starts must begin"),
        (lambda a: a["query_starts"].__setitem__(0, 1), "query_starts must begin"),
        (lambda a: a.update(sliding_window=-1), "sliding_window"),
        (
            lambda a: a.update(q=a["q"][:, :3].copy(), out=a["out"][:, :3].copy()),
            "num_heads must be a multiple",
        ),
        (lambda a: a.update(out=a["out"][:2]), "out must have shape"),
        (lambda a: a.update(v_cache=a["v_cache"][:2]), "v_cache must have shape"),
    ],
)
def test_bad_arguments_are_refused(rng: np.random.Generator, change: Any, message: str) -> None:
    arguments = batch_arguments(rng)
    change(arguments)
    with pytest.raises(ValueError, match=message):
        kernels.paged_attention(**arguments)
    assert not arguments["out"].any()


def test_blocks_behind_the_sliding_window_may_be_gone(isa: str, rng: np.random.Generator) -> None:
    arguments = batch_arguments(rng)
    arguments["sliding_window"] = 5
    kernels.paged_attention(**arguments)
    want = arguments["out"].copy()
    arguments["block_tables"][0, :2] = -1
    kernels.paged_attention(**arguments)
    np.testing.assert_array_equal(arguments["out"], want)


@pytest.mark.parametrize("slot", [-1, 8])
def test_a_slot_outside_the_cache_is_refused_before_anything_is_written(slot: int) -> None:
    caches = [np.zeros((2, 1, 4, 32), np.float32) for _ in range(2)]
    k = np.ones((2, 1, 32), np.float32)
    with pytest.raises(ValueError, match=rf"slots\[1\] is {slot}, expected 0 <= value < 8"):
        kernels.kv_write(k, k, np.array([0, slot], np.int64), caches[0], caches[1])
    assert not caches[0].any()
    assert not caches[1].any()
