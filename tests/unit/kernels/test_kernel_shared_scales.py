"""MXFP4 panels of 16 outputs, with their scales as they are or in half the bytes: shared exponents."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference
from engines.cpu.weights import Fp4Shard, Fp4Weight, mxfp4_read_bytes
from engines.fp4 import mxfp4
from tests.support.fp4_codes import DOUBLED_E2M1

TABLE = mxfp4.scale_table()
LOWEST, HIGHEST = 77, 177  # scale bytes that may be shared
ROW_COUNTS = (1, 8, 16, 24, 67)
WIDTHS = (32, 96, 128, 160, 416)
PANEL = 16


def regular_shard(rng: np.random.Generator, num_outputs: int, num_columns: int) -> Fp4Shard:
    """Exponents that differ by up to 3 in a superblock, each superblock's their own, and blocks of zeros."""
    num_blocks = num_columns // 32
    packed = rng.integers(0, 256, (num_outputs, num_columns // 2), np.uint8)
    packed.reshape(num_outputs, num_blocks, 16)[rng.random((num_outputs, num_blocks)) < 0.1] = 0
    lowest = rng.integers(110, 130, (num_outputs, -(-num_blocks // 4)), np.uint8)
    shifts = rng.integers(0, 4, (num_outputs, num_blocks), np.uint8)
    return Fp4Shard(packed, np.repeat(lowest, 4, axis=1)[:, :num_blocks] + shifts, TABLE)


def activations(
    rng: np.random.Generator, num_rows: int, num_columns: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows whose exponents may be shared, every third with some that may not, and blocks of zeros."""
    codes = DOUBLED_E2M1[rng.integers(0, DOUBLED_E2M1.size, (num_rows, num_columns))]
    exponents = rng.integers(-4, 0, (num_rows, num_columns // 32))
    exponents[1::3] = rng.integers(-20, 20, exponents[1::3].shape)
    codes[2::4, :32] = 0
    return codes, np.exp2(exponents).astype(np.float32)


def packed_bytes(num_outputs: int, num_columns: int, *, shared: bool) -> int:
    """What a weight takes: panels end on a line of 64 bytes."""
    scales = 32 * -(-num_columns // 128) if shared else 16 * (num_columns // 32)
    return -(-num_outputs // PANEL) * (num_columns * 8 + -(-scales // 64) * 64)


def check_products(rng: np.random.Generator, shards: list[Fp4Shard], num_rows: int) -> None:
    """Every product and `decode` against the reference: W4A4 to the bit, the others for unit vectors."""
    weight = Fp4Weight(shards, 32)
    codes, scales = activations(rng, num_rows, weight.num_columns)
    got = np.full((num_rows, weight.num_rows), np.nan, np.float32)
    kernels.fp4_linear_w4a4(codes, scales, weight, got)
    want = reference.fp4_linear_w4a4(codes, scales, shards, 32)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))

    decoded = reference.decode_weight(shards, 32, False)
    np.testing.assert_array_equal(weight.decode(), decoded)
    finite = np.isfinite(decoded).all(axis=1)  # zero times infinity is not a number
    columns = np.arange(num_rows) * 37 % weight.num_columns  # every row picks one column
    x = np.eye(weight.num_columns, dtype=np.float32)[columns]
    for product in (kernels.fp4_linear_f32, kernels.fp4_linear_w4a16):
        got = np.full((num_rows, weight.num_rows), np.nan, np.float32)
        product(x, weight, got)
        np.testing.assert_array_equal(got[:, finite], decoded.T[columns][:, finite])


@pytest.mark.parametrize("num_columns", WIDTHS)
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_all_panels_shared(isa: str, rng: np.random.Generator, num_rows: int, num_columns: int) -> None:
    check_products(rng, [regular_shard(rng, 50, num_columns)], num_rows)


@pytest.mark.parametrize("num_columns", WIDTHS)
@pytest.mark.parametrize("num_rows", ROW_COUNTS)
def test_panels_of_both_forms_in_one_weight(
    isa: str, rng: np.random.Generator, num_rows: int, num_columns: int
) -> None:
    """Three panels have one superblock of one output that may not be shared: in the middle, and the last."""
    shard = regular_shard(rng, 103, num_columns)
    shard.scales[21, -1] = LOWEST - 1
    shard.scales[50, 0] = HIGHEST + 1
    shard.scales[-1, -1] = shard.scales[-1, -2:].min() + 4 if num_columns > 32 else 254
    check_products(rng, [shard], num_rows)


def test_a_superblock_of_spread_four_takes_the_whole_weight_apart(rng: np.random.Generator) -> None:
    shard = regular_shard(rng, 50, 416)
    shard.scales[30, 4:8] = (100, 101, 102, 103)
    assert Fp4Weight([shard], 32).num_bytes == packed_bytes(50, 416, shared=True)
    shard.scales[30, 7] = 104
    assert Fp4Weight([shard], 32).num_bytes == packed_bytes(50, 416, shared=False)


@pytest.mark.parametrize(
    ("scale_bytes", "shared"),
    [
        ((LOWEST, LOWEST + 3, LOWEST, LOWEST + 1), True),
        ((LOWEST - 1, LOWEST + 2, LOWEST, LOWEST), False),
        ((HIGHEST, HIGHEST - 3, HIGHEST - 1, HIGHEST), True),
        ((HIGHEST, HIGHEST - 1, HIGHEST, HIGHEST + 1), False),
        ((0, 0, 0, 0), False),
        ((0, 1, 2, 3), False),
        ((254, 254, 254, 254), False),
        ((251, 252, 253, 254), False),
        ((127, 0, 127, 127), False),
        ((127, 127, 254, 127), False),
    ],
    ids=str,
)
def test_extreme_exponents(
    isa: str, rng: np.random.Generator, scale_bytes: tuple[int, ...], shared: bool
) -> None:
    shard = regular_shard(rng, 40, 160)
    shard.scales[17, :4] = scale_bytes
    assert Fp4Weight([shard], 32).num_bytes == packed_bytes(40, 160, shared=shared)
    for num_rows in (1, 9):
        check_products(rng, [shard], num_rows)


def test_blocks_of_a_partial_superblock_alone_decide(rng: np.random.Generator) -> None:
    shard = regular_shard(rng, 20, 160)
    shard.scales[3, 4] = LOWEST  # alone in its superblock, far from its neighbours
    assert Fp4Weight([shard], 32).num_bytes == packed_bytes(20, 160, shared=True)
    shard.scales[3, 4] = LOWEST - 1
    assert Fp4Weight([shard], 32).num_bytes == packed_bytes(20, 160, shared=False)


@pytest.mark.parametrize("num_rows", [1, 9, 24])
def test_shards_of_both_forms(isa: str, rng: np.random.Generator, num_rows: int) -> None:
    """A shard's own scale table decides too: only powers of two can be added to an exponent."""
    shards = [regular_shard(rng, num_outputs, 160) for num_outputs in (17, 5, 33)]
    odd = shards[1]._replace(scale_table=np.float32(1.5) * TABLE)
    assert Fp4Weight(shards, 32).num_bytes == 6 * packed_bytes(16, 160, shared=True)
    assert Fp4Weight([shards[0], odd, shards[2]], 32).num_bytes == 6 * packed_bytes(16, 160, shared=False)
    check_products(rng, shards, num_rows)
    check_products(rng, [shards[0], odd, shards[2]], num_rows)


def test_a_scale_that_is_not_a_number_stays_with_its_output(isa: str, rng: np.random.Generator) -> None:
    shard = regular_shard(rng, 50, 160)
    codes, scales = activations(rng, 20, 160)
    clean = reference.fp4_linear_w4a4(codes, scales, [shard], 32)
    shard.scales[20, 3] = 255
    weight = Fp4Weight([shard], 32)
    for rows in (slice(0, 20), slice(0, 1)):
        got = np.zeros((codes[rows].shape[0], 50), np.float32)
        kernels.fp4_linear_w4a4(codes[rows], scales[rows], weight, got)
        assert np.isnan(got[:, 20]).all()
        np.testing.assert_array_equal(np.delete(got, 20, 1), np.delete(clean[rows], 20, 1))


def test_bytes_read_are_counted_panel_by_panel(rng: np.random.Generator) -> None:
    scales = regular_shard(rng, 50, 160).scales
    assert mxfp4_read_bytes(scales) == 50 * (80 + 2 * 2)
    scales[20, 1] = 0  # its panel of 16 keeps its bytes
    assert mxfp4_read_bytes(scales) == 34 * (80 + 2 * 2) + 16 * (80 + 5)
    scales[49, 4] = 255  # and the last one, of 2
    assert mxfp4_read_bytes(scales) == 32 * (80 + 2 * 2) + 18 * (80 + 5)


def test_bytes_read_of_something_else() -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        mxfp4_read_bytes(np.zeros((4, 8), np.uint8)[:, ::2])
    with pytest.raises(TypeError, match="dtype uint8, got float32"):
        mxfp4_read_bytes(np.zeros((4, 8), np.float32))
