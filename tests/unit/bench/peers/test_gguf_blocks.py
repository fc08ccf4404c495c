"""GGUF's blocks hold the numbers of the checkpoint, by the word of the package that defines the format."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from engines.bench.peers.conversion.gguf_blocks import (
    mxfp4_blocks,
    nvfp4_blocks,
    paired_halves,
    q4_0_blocks,
    q8_0_blocks,
)
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.fp4 import e2m1

RANDOM = np.random.default_rng(5)


def fp4(format: str, num_rows: int, num_columns: int, convention: str = "compressed-tensors") -> Fp4Tensors:
    """Every code and every finite scale that the formats share."""
    group_size = 32 if format == "mxfp4" else 16
    # Above 252 a code of 6 is no float32 number; GGUF's E4M3 has no sign and no NaN.
    largest_scale = 252 if format == "mxfp4" else 0x7E
    shape = (num_rows, num_columns // group_size)
    return Fp4Tensors(
        name="weight",
        format=format,
        convention=convention,
        num_rows=num_rows,
        num_columns=num_columns,
        group_size=group_size,
        packed=RANDOM.integers(0, 256, (num_rows, num_columns // 2), np.uint8),
        scales=RANDOM.integers(0, largest_scale + 1, shape).astype(np.uint8),
        global_scale=None if format == "mxfp4" else 0.25,
        input_scale=None,
        quantizes_activations=False,
    )


def dense(weight: np.ndarray) -> DenseTensors:
    return DenseTensors("weight", "F32", weight.astype(np.float32))


@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 32), (3, 96), (67, 256)])
def test_mxfp4_is_kept_bit_for_bit(num_rows: int, num_columns: int) -> None:
    module = fp4("mxfp4", num_rows, num_columns)
    read = gguf.quants.dequantize(mxfp4_blocks(module), GGMLQuantizationType.MXFP4)
    assert np.array_equal(read, module.decoded(round_to_bfloat16=False))


@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 64), (3, 192), (67, 256)])
@pytest.mark.parametrize(("convention", "expected"), [("compressed-tensors", 4.0), ("modelopt", 0.25)])
def test_nvfp4_is_kept_with_its_multiplier_beside_it(
    num_rows: int, num_columns: int, convention: str, expected: float
) -> None:
    module = fp4("nvfp4", num_rows, num_columns, convention)
    blocks, multiplier = nvfp4_blocks(module)
    assert multiplier == expected
    read = gguf.quants.dequantize(blocks, GGMLQuantizationType.NVFP4) * np.float32(multiplier)
    assert np.array_equal(read, module.decoded(round_to_bfloat16=False))


def test_nvfp4_needs_whole_blocks_of_64() -> None:
    with pytest.raises(ValueError, match="96 columns; GGUF's NVFP4 needs a multiple of 64"):
        nvfp4_blocks(fp4("nvfp4", 2, 96))


def test_one_format_becomes_the_other_by_quantizing() -> None:
    weight = RANDOM.standard_normal((4, 128)).astype(np.float32)
    as_mxfp4 = gguf.quants.dequantize(mxfp4_blocks(dense(weight)), GGMLQuantizationType.MXFP4)
    blocks, multiplier = nvfp4_blocks(dense(weight))
    as_nvfp4 = gguf.quants.dequantize(blocks, GGMLQuantizationType.NVFP4) * np.float32(multiplier)
    size = np.linalg.norm(weight)
    assert np.linalg.norm(as_nvfp4 - weight) < np.linalg.norm(as_mxfp4 - weight) < 0.15 * size


@pytest.mark.parametrize(
    ("blocks", "kind"), [(q4_0_blocks, GGMLQuantizationType.Q4_0), (q8_0_blocks, GGMLQuantizationType.Q8_0)]
)
def test_integers_are_those_of_the_reference(blocks: object, kind: GGMLQuantizationType) -> None:
    weight = RANDOM.standard_normal((5, 96)).astype(np.float32)
    weight[1, 32:64] = 0.0
    weight[2, 0] = -40.0
    assert callable(blocks)
    assert np.array_equal(blocks(dense(weight)), gguf.quants.quantize(weight, kind))


def test_rows_of_a_head_become_neighbours_of_their_partners() -> None:
    rows = np.arange(8, dtype=np.uint8)[:, None]
    assert paired_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_first_half_of_a_block_lies_in_the_low_nibbles() -> None:
    module = fp4("mxfp4", 1, 32)
    block = mxfp4_blocks(module)[0]
    codes = e2m1.unpack(module.packed)[0]
    assert block[0] == module.scales[0, 0]
    assert block[1] == codes[0] | codes[16] << 4
