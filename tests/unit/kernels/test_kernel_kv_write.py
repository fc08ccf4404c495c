"""Keys and values into the paged cache: the layout of its rows, rounding, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels
from tests.support.paged_attention import read_fp8_rows


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


@pytest.mark.parametrize("slot", [-1, 8])
def test_a_slot_outside_the_cache_is_refused_before_anything_is_written(slot: int) -> None:
    caches = [np.zeros((2, 1, 4, 32), np.float32) for _ in range(2)]
    k = np.ones((2, 1, 32), np.float32)
    with pytest.raises(ValueError, match=rf"slots\[1\] is {slot}, expected 0 <= value < 8"):
        kernels.kv_write(k, k, np.array([0, slot], np.int64), caches[0], caches[1])
    assert not caches[0].any()
    assert not caches[1].any()
