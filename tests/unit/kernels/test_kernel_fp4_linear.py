"""FP4 linear layers: against the reference, across instruction sets, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference
from engines.cpu.weights import Fp4Shard, Fp4Weight
from engines.fp4 import e4m3, e8m0, mxfp4, nvfp4
from tests.support.fp4_codes import DOUBLED_E2M1

ONE_TABLE = mxfp4.scale_table()
CT_TABLE = nvfp4.scale_table("compressed-tensors", 937.0)
SHAPES = [
    (1, 1, 32),
    (2, 16, 64),
    (3, 17, 96),
    (5, 47, 160),
    (8, 64, 256),
    (9, 100, 32),
    (31, 33, 352),
    (67, 80, 288),
]


def random_shard(rng: np.random.Generator, num_rows: int, num_columns: int, group_size: int) -> Fp4Shard:
    packed = rng.integers(0, 256, (num_rows, num_columns // 2), np.uint8)
    shape = (num_rows, num_columns // group_size)
    if group_size == 32:
        return Fp4Shard(packed, rng.integers(110, 130, shape, np.uint8), mxfp4.scale_table())
    return Fp4Shard(packed, rng.integers(0, 127, shape, np.uint8), CT_TABLE)


def random_activations(
    rng: np.random.Generator, num_rows: int, num_columns: int, group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = DOUBLED_E2M1[rng.integers(0, DOUBLED_E2M1.size, (num_rows, num_columns))]
    return codes, rng.lognormal(0, 3, (num_rows, num_columns // group_size)).astype(np.float32)


def w4a4(codes: NDArray[np.int8], scales: NDArray[np.float32], weight: Fp4Weight) -> NDArray[np.float32]:
    out = np.full((codes.shape[0], weight.num_rows), np.nan, np.float32)
    kernels.fp4_linear_w4a4(codes, scales, weight, out)
    return out


def w4a16(x: NDArray[np.float32], weight: Fp4Weight) -> NDArray[np.float32]:
    out = np.full((x.shape[0], weight.num_rows), np.nan, np.float32)
    kernels.fp4_linear_w4a16(x, weight, out)
    return out


def f32(x: NDArray[np.float32], weight: Fp4Weight) -> NDArray[np.float32]:
    out = np.full((x.shape[0], weight.num_rows), np.nan, np.float32)
    kernels.fp4_linear_f32(x, weight, out)
    return out


@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w4a4_gives_the_bits_of_the_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], group_size: int
) -> None:
    num_rows, num_outputs, num_columns = shape
    shard = random_shard(rng, num_outputs, num_columns, group_size)
    codes, scales = random_activations(rng, num_rows, num_columns, group_size)
    got = w4a4(codes, scales, Fp4Weight([shard], group_size))
    want = reference.fp4_linear_w4a4(codes, scales, [shard], group_size)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(
    "shape", [*SHAPES, (40, 35, 4112), (23, 97, 1040), (130, 65, 8208), (530, 17, 48)], ids=str
)
def test_nvfp4_w4a4_gives_the_bits_of_the_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    """Scales of both operands are E4M3 values, every one of them; the tensors' own scales come last."""
    num_rows, num_outputs, num_columns = shape
    shard = random_shard(rng, num_outputs, num_columns, 16)
    codes, scales = random_activations(rng, num_rows, num_columns, 16)
    scales = e4m3.decode(rng.integers(0, 127, scales.shape, np.uint8))
    got = w4a4(codes, scales, Fp4Weight([shard], 16, activation_scale=0.0173))
    want = reference.fp4_linear_w4a4(codes, scales, [shard], 16, 0.0173)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
    alone = w4a4(codes[-1:], scales[-1:], Fp4Weight([shard], 16, activation_scale=0.0173))
    np.testing.assert_array_equal(alone[0].view(np.uint32), want[-1].view(np.uint32))


@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_f32_matches_the_decoded_weight(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], group_size: int, rounded: bool
) -> None:
    num_rows, num_outputs, num_columns = shape
    shard = random_shard(rng, num_outputs, num_columns, group_size)
    x = rng.standard_normal((num_rows, num_columns)).astype(np.float32)
    decoded = reference.decode_weight([shard], group_size, rounded)
    got = f32(x, Fp4Weight([shard], group_size, rounded))
    magnitude = reference.linear(np.abs(x), np.abs(decoded))
    assert (np.abs(got - reference.linear(x, decoded)) <= 2e-6 * magnitude + 1e-30).all()


def narrow_shard(
    rng: np.random.Generator, num_rows: int, num_columns: int, group_size: int, spread: int
) -> Fp4Shard:
    """Scales as trained weights have them: exponents of a superblock within `spread` of each other."""
    shard = random_shard(rng, num_rows, num_columns, group_size)
    if group_size == 16:
        return shard
    return shard._replace(scales=rng.integers(117, 118 + spread, shard.scales.shape, np.uint8))


@pytest.mark.parametrize("spread", [0, 3, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (12, 48, 384), (13, 33, 128), (25, 31, 416)], ids=str)
def test_w4a4_with_shared_exponents_gives_the_bits_of_the_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], spread: int
) -> None:
    """Exponents that fit one superblock, some rows whose exponents do not, and blocks of zeros."""
    num_rows, num_outputs, num_columns = shape
    shard = narrow_shard(rng, num_outputs, num_columns, 32, spread)
    codes, scales = random_activations(rng, num_rows, num_columns, 32)
    scales = np.exp2(rng.integers(-6, -5 + spread, scales.shape)).astype(np.float32)
    scales[1::5] = np.exp2(rng.integers(-20, 20, scales[1::5].shape))
    codes[:, 32:64] *= rng.integers(0, 2, (num_rows, 1), np.int8)
    scales[2::7, 1:2] = 2.0**-127  # what quantizing a block of zeros gives
    codes[2::7, 32:64] = 0
    got = w4a4(codes, scales, Fp4Weight([shard], 32))
    want = reference.fp4_linear_w4a4(codes, scales, [shard], 32)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("spread", [0, 3, 9])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 48, 384), (13, 33, 128)], ids=str)
def test_w4a16_is_exact_up_to_its_activations(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int], group_size: int, spread: int
) -> None:
    num_rows, num_outputs, num_columns = shape
    shard = narrow_shard(rng, num_outputs, num_columns, group_size, spread)
    x = (rng.standard_normal((num_rows, num_columns)) * rng.lognormal(0, 2, (num_rows, 1))).astype(np.float32)
    x[0] = 0.0
    decoded = reference.decode_weight([shard], group_size, False)
    got = w4a16(x, Fp4Weight([shard], group_size))
    largest = largest_of_each(16 if group_size == 16 else 128, x)
    error = 2.0**-15 * largest + 2e-6 * np.abs(x)
    if group_size == 16 and isa.startswith(("amx", "avx512-zen")):  # what bfloat16 can hold
        error = 2.0**-12 * largest + (2.0**-9 + 2e-6) * np.abs(x)
    bound = reference.linear(error, np.abs(decoded))
    assert (np.abs(got - reference.linear(x, decoded)) <= bound + 1e-30).all()
    assert (got[0] == 0).all()


def largest_of_each(num_columns: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest magnitude among each `num_columns` columns, in the place of every one of them."""
    parts = np.split(np.abs(x), range(num_columns, x.shape[1], num_columns), axis=1)
    return np.concatenate([np.broadcast_to(part.max(axis=1, keepdims=True), part.shape) for part in parts], 1)


@pytest.mark.parametrize("group_size", [16, 32])
def test_w4a16_uses_exactly_the_decoded_values(isa: str, rng: np.random.Generator, group_size: int) -> None:
    """Unit vectors of many magnitudes: a power of two is a 16-bit integer as it stands."""
    shard = random_shard(rng, 50, 160, group_size)
    decoded = reference.decode_weight([shard], group_size, False)
    for power in (0, 14, -14, 60, -60):
        x = np.eye(160, dtype=np.float32) * np.float32(2.0**power)
        got = w4a16(x, Fp4Weight([shard], group_size))
        np.testing.assert_array_equal(got, decoded.T * np.float32(2.0**power))


def test_w4a16_takes_the_largest_mantissas_and_the_smallest_numbers(isa: str) -> None:
    shard = Fp4Shard(np.full((16, 64), 0x22, np.uint8), np.full((16, 4), 127, np.uint8), ONE_TABLE)
    weight = Fp4Weight([shard], 32)
    below_two = np.float32(2.0) - np.float32(2.0**-23)
    for value in (below_two, np.float32(1.98), np.float32(-1.95), np.float32(2.0**-126), np.float32(1e38)):
        x = np.zeros((1, 128), np.float32)
        x[0, 77] = value
        assert np.abs(w4a16(x, weight) / 1.0 - value).max() <= max(abs(value) * 2.0**-15, 2.0**-112)


def test_w4a16_of_not_a_number_is_nan_in_its_row_and_no_other(isa: str, rng: np.random.Generator) -> None:
    weight = Fp4Weight([random_shard(rng, 20, 160, 32)], 32)
    x = rng.standard_normal((5, 160)).astype(np.float32)
    clean = w4a16(x, weight)
    x[2, 140] = np.nan
    x[4, 3] = np.inf
    got = w4a16(x, weight)
    assert not np.isfinite(got[[2, 4]]).any()
    np.testing.assert_array_equal(got[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("rounded", [False, True])
def test_f32_uses_exactly_the_decoded_values(
    isa: str, rng: np.random.Generator, group_size: int, rounded: bool
) -> None:
    """A unit vector as input picks one column: no sum is left to hide a wrong value."""
    shard = random_shard(rng, 50, 96, group_size)
    decoded = reference.decode_weight([shard], group_size, rounded)
    got = f32(np.eye(96, dtype=np.float32), Fp4Weight([shard], group_size, rounded))
    np.testing.assert_array_equal(got, decoded.T)


@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("rounded", [False, True])
def test_decode_returns_the_checkpoint_values(
    rng: np.random.Generator, group_size: int, rounded: bool
) -> None:
    shards = [random_shard(rng, rows, 160, group_size) for rows in (5, 16, 33)]
    weight = Fp4Weight(shards, group_size, rounded)
    assert (weight.num_rows, weight.num_columns, weight.group_size) == (54, 160, group_size)
    assert weight.shard_rows == [5, 16, 33]
    assert weight.round_to_bfloat16 is rounded
    np.testing.assert_array_equal(weight.decode(), reference.decode_weight(shards, group_size, rounded))


def test_shards_stand_side_by_side_with_their_own_scale_tables(isa: str, rng: np.random.Generator) -> None:
    tables = [nvfp4.scale_table("compressed-tensors", divisor) for divisor in (100.0, 250.0, 3.0)]
    shards = [
        random_shard(rng, rows, 64, 16)._replace(scale_table=table)
        for rows, table in zip((5, 40, 16), tables, strict=True)
    ]
    codes, scales = random_activations(rng, 11, 64, 16)
    got = w4a4(codes, scales, Fp4Weight(shards, 16))
    for shard, columns in zip(shards, np.split(got, [5, 45], axis=1), strict=True):
        np.testing.assert_array_equal(columns, reference.fp4_linear_w4a4(codes, scales, [shard], 16))


@pytest.mark.parametrize("w_byte", [0, 1, 127, 253, 254])
@pytest.mark.parametrize("a_byte", [0, 1, 127, 253])
def test_extreme_scales_for_every_pair_of_codes(isa: str, w_byte: int, a_byte: int) -> None:
    """256 outputs hold every byte in one place of the block; a zero sum stays 0 under any pair of scales."""
    packed = np.zeros((256, 16), np.uint8)
    packed[:, 5] = np.arange(256)
    shard = Fp4Shard(packed, np.full((256, 1), w_byte, np.uint8), mxfp4.scale_table())
    codes = np.zeros((DOUBLED_E2M1.size, 32), np.int8)
    codes[:, 10] = DOUBLED_E2M1
    scales = np.full((DOUBLED_E2M1.size, 1), e8m0.VALUES[a_byte], np.float32)
    got = w4a4(codes, scales, Fp4Weight([shard], 32))
    want = reference.fp4_linear_w4a4(codes, scales, [shard], 32)
    np.testing.assert_array_equal(got, want)
    assert not np.isnan(got).any()
    assert (got[0] == 0).all()
    if w_byte == 253 and a_byte == 0:
        assert got[7, 7] == np.float32(36.0 * 2.0**-1)


def test_largest_block_sums_do_not_saturate(isa: str) -> None:
    for group_size in (16, 32):
        for byte, value in ((0x77, 6.0), (0xFF, -6.0)):
            packed = np.full((16, group_size), byte, np.uint8)
            shard = Fp4Shard(packed, np.zeros((16, 2), np.uint8), np.ones(256, np.float32))
            for code in (12, -12):
                codes = np.full((3, 2 * group_size), code, np.int8)
                got = w4a4(codes, np.ones((3, 2), np.float32), Fp4Weight([shard], group_size))
                assert (got == value * code / 2 * 2 * group_size).all()


def test_not_a_number_scale_makes_its_row_nan_and_no_other(isa: str, rng: np.random.Generator) -> None:
    shard = random_shard(rng, 20, 64, 32)
    codes, scales = random_activations(rng, 5, 64, 32)
    clean = w4a4(codes, scales, Fp4Weight([shard], 32))
    scales[2, 1] = np.nan
    codes[2, 32:] = 0
    got = w4a4(codes, scales, Fp4Weight([shard], 32))
    assert np.isnan(got[2]).all()
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


def test_a_row_that_tiles_cannot_hold_changes_no_other(isa: str, rng: np.random.Generator) -> None:
    """NVFP4: scales that are no E4M3 value, magnitudes beyond any, not a number."""
    weight = Fp4Weight([random_shard(rng, 50, 336, 16)], 16)
    codes, scales = random_activations(rng, 40, 336, 16)
    scales = e4m3.decode(rng.integers(0, 127, scales.shape, np.uint8))
    x = rng.standard_normal((40, 336)).astype(np.float32)
    clean = w4a4(codes, scales, weight), w4a16(x, weight)
    for odd_scale, odd_value in ((0.3, 1e30), (np.nan, np.nan), (500.0, np.finfo(np.float32).max)):
        scales[7, 4], x[7, 70] = odd_scale, odd_value
        for rows in (slice(0, 40), slice(5, 20), slice(6, 9)):
            others = np.arange(40)[rows] != 7
            got = w4a4(codes[rows], scales[rows], weight), w4a16(x[rows], weight)
            alone = w4a4(codes[7:8], scales[7:8], weight), w4a16(x[7:8], weight)
            for mode in (0, 1):
                np.testing.assert_array_equal(got[mode][others], clean[mode][rows][others])
                np.testing.assert_array_equal(got[mode][~others], alone[mode])
                assert np.isnan(alone[mode]).all() == np.isnan(odd_value)


def test_weights_whose_scales_are_not_numbers(isa: str, rng: np.random.Generator) -> None:
    """A panel with such a scale is computed as ever; its other outputs and the other panels stay right."""
    shard = random_shard(rng, 50, 336, 16)
    codes, scales = random_activations(rng, 20, 336, 16)
    scales = e4m3.decode(rng.integers(0, 127, scales.shape, np.uint8))
    clean = w4a4(codes, scales, Fp4Weight([shard], 16))
    shard.scales[20, 3] = 0x7F
    got = w4a4(codes, scales, Fp4Weight([shard], 16))
    assert np.isnan(got[:, 20]).all()
    np.testing.assert_array_equal(np.delete(got, 20, 1), np.delete(clean, 20, 1))


@pytest.mark.parametrize("group_size", [16, 32])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    isa: str, rng: np.random.Generator, group_size: int
) -> None:
    weight = Fp4Weight([random_shard(rng, 37, 352, group_size)], group_size)
    rounded = Fp4Weight([random_shard(rng, 37, 352, group_size)], group_size, True)
    codes, scales = random_activations(rng, 67, 352, group_size)
    x = rng.standard_normal((67, 352)).astype(np.float32)
    batch = w4a4(codes, scales, weight), f32(x, weight), f32(x, rounded)
    narrow = Fp4Weight([narrow_shard(rng, 37, 352, group_size, 2)], group_size)
    integer = w4a16(x, weight), w4a16(x, narrow)
    for rows in (slice(0, 1), slice(7, 10), slice(60, 67), slice(1, 66)):
        np.testing.assert_array_equal(w4a4(codes[rows], scales[rows], weight), batch[0][rows])
        np.testing.assert_array_equal(f32(x[rows], weight), batch[1][rows])
        np.testing.assert_array_equal(f32(x[rows], rounded), batch[2][rows])
        np.testing.assert_array_equal(w4a16(x[rows], weight), integer[0][rows])
        np.testing.assert_array_equal(w4a16(x[rows], narrow), integer[1][rows])
