"""MXFP4 W4A4 where the exponents of a row's blocks lie 4 to 7 apart: the bits of the reference.

Tiles take such rows in two parts, up to 16 at a time; vectors take them block by block.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference
from engines.cpu.weights import Fp4Shard, Fp4Weight
from engines.fp4 import mxfp4
from tests.support.fp4_codes import DOUBLED_E2M1

# Rows, outputs, columns: tiles from 9 rows on, in blocks of 128; odd numbers of panels; short superblocks.
SHAPES = [
    (9, 16, 128),
    (16, 48, 64),
    (17, 33, 128),
    (33, 80, 160),
    (40, 32, 96),
    (65, 47, 224),
    (200, 32, 352),
    (12, 16, 32),
]


def close_weights(rng: np.random.Generator, num_outputs: int, num_columns: int) -> Fp4Shard:
    """Exponents up to 3 apart: one product runs over a superblock."""
    packed = rng.integers(0, 256, (num_outputs, num_columns // 2), np.uint8)
    scales = rng.integers(117, 121, (num_outputs, num_columns // 32), np.uint8)
    return Fp4Shard(packed, scales, mxfp4.scale_table())


def scales_apart(
    rng: np.random.Generator, num_rows: int, num_blocks: int, distance: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Powers of two: in each superblock of row i the highest is exactly 2^distance[i] times the lowest."""
    exponents = np.zeros((num_rows, num_blocks), np.int64)
    for start in range(0, num_blocks, 4):
        count = min(4, num_blocks - start)
        own = rng.integers(0, distance[:, None] + 1, (num_rows, count))
        own[:, 0] = 0
        own[:, -1] = distance if count > 1 else 0
        exponents[:, start : start + count] = rng.permuted(own, axis=1) + rng.integers(-9, 9, (num_rows, 1))
    return np.exp2(exponents).astype(np.float32)


def product(codes: NDArray[np.int8], scales: NDArray[np.float32], shard: Fp4Shard) -> NDArray[np.float32]:
    out = np.full((codes.shape[0], shard.packed.shape[0]), np.nan, np.float32)
    kernels.fp4_linear_w4a4(codes, scales, Fp4Weight([shard], 32), out)
    return out


def assert_bits_of_the_reference(
    codes: NDArray[np.int8], scales: NDArray[np.float32], shard: Fp4Shard
) -> None:
    got = product(codes, scales, shard)
    want = reference.fp4_linear_w4a4(codes, scales, [shard], 32)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("distance", [3, 4, 7, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_exactly_so_far_apart(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], distance: int
) -> None:
    num_rows, num_outputs, num_columns = shape
    codes = rng.choice(DOUBLED_E2M1, (num_rows, num_columns))
    scales = scales_apart(rng, num_rows, num_columns // 32, np.full(num_rows, distance))
    assert_bits_of_the_reference(codes, scales, close_weights(rng, num_outputs, num_columns))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_all_kinds(isa: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    num_rows, num_outputs, num_columns = shape
    codes = rng.choice(DOUBLED_E2M1, (num_rows, num_columns))
    distance = rng.choice(np.array([0, 3, 4, 5, 6, 7, 8, 20]), num_rows)
    scales = scales_apart(rng, num_rows, num_columns // 32, distance)
    assert_bits_of_the_reference(codes, scales, close_weights(rng, num_outputs, num_columns))


@pytest.mark.parametrize("outside", [0.3, 0.0, 2.0**-127, 2.0**127, 2.0**-3])
def test_a_block_of_zeros_has_any_scale(isa: str, rng: np.random.Generator, outside: float) -> None:
    codes = rng.choice(DOUBLED_E2M1, (40, 288))
    scales = scales_apart(rng, 40, 9, np.full(40, 6))
    zeros = rng.integers(0, 9, 40)
    for row, block in enumerate(zeros):
        codes[row, block * 32 : (block + 1) * 32] = 0
        scales[row, block] = outside
    assert_bits_of_the_reference(codes, scales, close_weights(rng, 48, 288))


def test_weights_of_which_one_superblock_is_not_shared(isa: str, rng: np.random.Generator) -> None:
    """Its panel keeps its scales as they are, and the other superblocks are still one product or two."""
    codes = rng.choice(DOUBLED_E2M1, (35, 288))
    scales = scales_apart(rng, 35, 9, np.full(35, 7))
    for output in (0, 20, 47):
        for block in (0, 5, 8):
            shard = close_weights(rng, 48, 288)
            shard.scales[output, block] = 60
            assert_bits_of_the_reference(codes, scales, shard)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(isa: str, sign: int) -> None:
    """Three blocks of the largest products, worth 2^10 times the fourth, whose sum is an odd number."""
    codes = np.full((20, 128), 12, np.int8)
    codes[:, 96:] = np.where(np.arange(32) < 31, 1, 0)
    packed = np.full((32, 64), 0x77 if sign > 0 else 0xFF, np.uint8)
    packed[:, 48:] = 0x11 if sign > 0 else 0x99
    shard = Fp4Shard(packed, np.tile(np.array([120, 120, 120, 117], np.uint8), (32, 1)), mxfp4.scale_table())
    scales = np.tile(np.array([128, 128, 128, 1], np.float32), (20, 1))
    want = np.float32(sign * (3 * 32 * 144 * 2**10 + 31)) * np.float32(2.0 ** (117 - 127 - 2))
    assert want == sign * (3 * 32 * 144 * 2**10 + 31) * 2.0**-12
    assert (product(codes, scales, shard) == want).all()
    assert_bits_of_the_reference(codes, scales, shard)


def test_a_scale_that_is_no_number_stays_in_its_row(isa: str, rng: np.random.Generator) -> None:
    codes = rng.choice(DOUBLED_E2M1, (40, 128))
    scales = scales_apart(rng, 40, 4, np.full(40, 5))
    shard = close_weights(rng, 33, 128)
    clean = product(codes, scales, shard)
    scales[21, 2] = np.nan
    got = product(codes, scales, shard)
    assert np.isnan(got[21]).all()
    np.testing.assert_array_equal(np.delete(got, 21, 0), np.delete(clean, 21, 0))


def test_a_row_alone_has_the_bits_it_has_among_others(isa: str, rng: np.random.Generator) -> None:
    codes = rng.choice(DOUBLED_E2M1, (50, 160))
    scales = scales_apart(rng, 50, 5, rng.choice(np.array([0, 5, 7]), 50))
    shard = close_weights(rng, 48, 160)
    batch = product(codes, scales, shard)
    for rows in (slice(0, 1), slice(3, 12), slice(7, 27), slice(30, 50)):
        np.testing.assert_array_equal(product(codes[rows], scales[rows], shard), batch[rows])
