"""Paged attention: against the reference, and the same bits however a sequence is cut into steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from engines.cpu import kernels, reference
from tests.support.paged_attention import CachedSequence, attend, bits, fill_cache


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
    first = 0 if num_rows == 70 else 29  # the last row before those that will hold NaN, and the first
    q = q[first : first + num_rows].copy()
    want = attend(cached, q, first)
    poison = np.full((40, 2, 32), np.nan, np.float32)
    kernels.kv_write(poison, poison, cached.slots(np.arange(30, 70)), cached.keys, cached.values)
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
        alone = CachedSequence(keys, values, tables[i], cached.k, cached.v)
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


def test_far_apart_scores_do_not_overflow(isa: str, rng: np.random.Generator) -> None:
    cached = fill_cache(rng, 40, 1, 32, 16, "float32")
    q = (1e4 * rng.standard_normal((40, 2, 32))).astype(np.float32)
    want = reference.attention(q, cached.k, cached.v, 0, 32**-0.5, 0)
    np.testing.assert_allclose(attend(cached, q, 0), want, rtol=0, atol=2e-2)


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
