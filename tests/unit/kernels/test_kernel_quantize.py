"""Activation quantization: bit for bit against the libraries' golden vectors and the NumPy formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference

GoldenVectors = Callable[[str], dict[str, NDArray[Any]]]

CASES = [
    "normal", "llm_like", "heavy_tail", "zeros", "ties", "ties_max4", "nv_ties", "fp8_scale_ties",
    "pow2_boundaries", "wide_range", "tiny", "huge",
]  # fmt: skip
CALIBRATIONS = ["act_self", "act_half", "act_x8"]


def run_mxfp4(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = np.full(x.shape, 99, np.int8)
    scales = np.full((x.shape[0], x.shape[1] // 32), -1, np.float32)
    kernels.quantize_mxfp4(x, codes, scales)
    return codes, scales


def run_nvfp4(
    x: NDArray[np.float32], input_scale: float, modelopt: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = np.full(x.shape, 99, np.int8)
    scales = np.full((x.shape[0], x.shape[1] // 16), -1, np.float32)
    kernels.quantize_nvfp4(x, input_scale, modelopt, codes, scales)
    return codes, scales


def dequantized(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    values = np.float32(0.5) * codes.astype(np.float32).reshape(*scales.shape, -1)
    return (values * scales[..., None]).reshape(codes.shape)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_mxfp4_golden(isa: str, golden_vectors: GoldenVectors, case: str, dtype: str) -> None:
    tensors = golden_vectors("ct_mxfp4")
    key = f"{case}.{dtype}."
    codes, scales = run_mxfp4(tensors[key + "input"].astype(np.float32))
    np.testing.assert_array_equal(scales, tensors[key + "act_scale"].astype(np.float32))
    np.testing.assert_array_equal(dequantized(codes, scales), tensors[key + "act_dequant"].astype(np.float32))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("case", CASES)
def test_nvfp4_compressed_tensors_golden(
    isa: str, golden_vectors: GoldenVectors, case: str, calibration: str
) -> None:
    tensors = golden_vectors("ct_nvfp4")
    key = f"{case}.f32."
    if case == "huge" and calibration == "act_x8":
        assert key + calibration + ".dequant" not in tensors
        return
    divisor = tensors[f"{key}{calibration}.input_global_scale"].astype(np.float32).reshape(())
    codes, scales = run_nvfp4(tensors[key + "input"], float(divisor), modelopt=False)
    np.testing.assert_array_equal(scales, tensors[f"{key}{calibration}.scale"].astype(np.float32))
    np.testing.assert_array_equal(
        dequantized(codes, scales / divisor), tensors[f"{key}{calibration}.dequant"]
    )


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("case", CASES)
def test_nvfp4_modelopt_golden(isa: str, golden_vectors: GoldenVectors, case: str, calibration: str) -> None:
    tensors = golden_vectors("mo_nvfp4")
    key = f"{case}.f32."
    if case == "huge" and calibration == "act_x8":
        assert f"{key}{calibration}.qtensor_dequant" not in tensors
        return
    factor = tensors[f"{key}{calibration}.input_scale"].astype(np.float32).reshape(())
    codes, scales = run_nvfp4(tensors[key + "input"], float(factor), modelopt=True)
    np.testing.assert_array_equal(scales, tensors[f"{key}{calibration}.scale"].astype(np.float32))
    want = tensors[f"{key}{calibration}.qtensor_dequant"]
    np.testing.assert_array_equal(dequantized(codes, scales * factor), want)


def awkward_blocks(rng: np.random.Generator) -> NDArray[np.float32]:
    """Magnitudes over the whole float32 range, zeros of both signs, subnormals, and every E2M1 tie."""
    x = np.ldexp(rng.standard_normal((67, 96)), rng.integers(-145, 120, (67, 96))).astype(np.float32)
    x[3, :32] = -0.0
    x[4, :64] = 0.0
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], np.float32)
    x[5] = np.tile(np.concatenate([ties, -ties]), 6)
    x[6] = np.nextafter(x[5], np.float32(np.inf))
    x[7] = np.finfo(np.float32).max
    x[8] = np.finfo(np.float32).smallest_subnormal
    return x


def test_mxfp4_matches_the_reference(isa: str, rng: np.random.Generator) -> None:
    x = awkward_blocks(rng)
    for got, want in zip(run_mxfp4(x), reference.quantize_mxfp4(x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("modelopt", [False, True])
@pytest.mark.parametrize("input_scale", [0.0, 1.0, 0.0371, 812.25, 3.0e-38, 1.0e36])
def test_nvfp4_matches_the_reference(
    isa: str, rng: np.random.Generator, modelopt: bool, input_scale: float
) -> None:
    x = awkward_blocks(rng)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wanted = reference.quantize_nvfp4(x, input_scale, modelopt)
    for got, want in zip(run_nvfp4(x, input_scale, modelopt), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_with_a_non_finite_value_is_nan_and_its_neighbours_are_not(
    isa: str, rng: np.random.Generator, bad: float
) -> None:
    x = rng.standard_normal((3, 96)).astype(np.float32)
    clean = run_mxfp4(x), run_nvfp4(x, 100.0, False), run_nvfp4(x, 0.01, True)
    x[1, 40] = bad
    for group, before, (codes, scales) in zip(
        (32, 16, 16), clean, (run_mxfp4(x), run_nvfp4(x, 100.0, False), run_nvfp4(x, 0.01, True)), strict=True
    ):
        block = 40 // group
        assert np.isnan(scales[1, block])
        assert (codes[1, block * group : (block + 1) * group] == 0).all()
        assert np.isnan(scales).sum() == 1
        codes[1, block * group : (block + 1) * group] = before[0][1, block * group : (block + 1) * group]
        np.testing.assert_array_equal(codes, before[0])


THRESHOLDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)  # where an E2M1 code ends
# Powers of two, whose quotients meet thresholds exactly; mantissas that make them miss by as little as can
# be; divisors at both ends of what four blocks at a time are computed for.
INPUT_SCALES = [
    1.0, 2.0**-7, 0.0371, 812.25, 1.0 + 2.0**-22, 1.5 + 2.0**-23, 2.0 - 2.0**-23,
    1.37 * 2.0**-84, 1.1 * 2.0**-76, 1.7 * 2.0**72, 1.37 * 2.0**84,
]  # fmt: skip


def assert_nvfp4_is_the_reference(x: NDArray[np.float32], input_scale: float, modelopt: bool) -> None:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wanted_codes, wanted_scales = reference.quantize_nvfp4(x, input_scale, modelopt)
    codes, scales = run_nvfp4(x, input_scale, modelopt)
    np.testing.assert_array_equal(codes, wanted_codes)
    np.testing.assert_array_equal(scales, wanted_scales)


def blocks_at_thresholds(
    rng: np.random.Generator, num_blocks: int, input_scale: float, modelopt: bool
) -> NDArray[np.float32]:
    """[num_blocks, 16] whose quotients lie at thresholds, or up to two floats beside them.

    Block scales run over all of E4M3, subnormals included.
    """
    x = np.zeros((num_blocks, 16), np.float32)
    unit = 6 * input_scale if modelopt else 6 / input_scale
    x[:, 0] = np.exp2(rng.uniform(-9, np.log2(448), num_blocks)) * unit
    scales = reference.quantize_nvfp4(x, input_scale, modelopt)[1]
    divisors = scales * np.float32(input_scale) if modelopt else scales / np.float32(input_scale)
    at = rng.choice(THRESHOLDS, (num_blocks, 15)) * divisors
    beside = at.view(np.int32) + rng.integers(-2, 3, at.shape, np.int32)
    x[:, 1:] = beside.view(np.float32) * rng.choice(np.array([-1, 1], np.float32), at.shape)
    return x


@pytest.mark.parametrize("modelopt", [False, True])
@pytest.mark.parametrize("input_scale", INPUT_SCALES)
def test_nvfp4_quotients_at_thresholds(
    isa: str, rng: np.random.Generator, modelopt: bool, input_scale: float
) -> None:
    x = blocks_at_thresholds(rng, 4096, input_scale, modelopt)
    assert_nvfp4_is_the_reference(x.reshape(32, -1), input_scale, modelopt)


@pytest.mark.parametrize("modelopt", [False, True])
@pytest.mark.parametrize("input_scale", INPUT_SCALES)
def test_nvfp4_of_many_random_rows(
    isa: str, rng: np.random.Generator, modelopt: bool, input_scale: float
) -> None:
    """Every magnitude, blocks beyond the calibrated one (limited to 448), zeros, subnormals."""
    unit = np.float64(input_scale if modelopt else 1 / input_scale)
    x = np.ldexp(rng.standard_normal((64, 64, 16)), rng.integers(-14, 16, (64, 64, 1))) * unit
    x[::7, ::5] = 0.0
    x[1::7, 1::5] = -0.0
    x[2::7, 2::5] = np.finfo(np.float32).smallest_subnormal * rng.integers(
        -(2**22), 2**22, x[2::7, 2::5].shape
    )
    x[3::7, 3::5] = np.finfo(np.float32).max * rng.uniform(-1, 1, x[3::7, 3::5].shape)
    rows = np.clip(x, -np.finfo(np.float32).max, np.finfo(np.float32).max).astype(np.float32)
    assert_nvfp4_is_the_reference(rows.reshape(64, -1), input_scale, modelopt)


@pytest.mark.parametrize("modelopt", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_nvfp4_blocks_beside_one_that_does_not_fit(
    isa: str, rng: np.random.Generator, modelopt: bool, bad: float
) -> None:
    """Not a number, or far beyond the largest scale: in any block of any number of blocks."""
    for num_blocks in range(1, 10):
        for block in range(num_blocks):
            x = rng.standard_normal((1, num_blocks * 16)).astype(np.float32)
            codes, scales = run_nvfp4(x, 0.75, modelopt)
            x[0, block * 16 + 11] = bad
            bad_codes, bad_scales = run_nvfp4(x, 0.75, modelopt)
            others = np.arange(num_blocks) != block
            np.testing.assert_array_equal(bad_scales[0][others], scales[0][others])
            np.testing.assert_array_equal(bad_codes.reshape(-1, 16)[others], codes.reshape(-1, 16)[others])
            assert np.isnan(bad_scales[0, block]) == (not np.isfinite(bad))
            assert bad_codes[0, block * 16 + 11] == (12 if np.isfinite(bad) else 0)


@pytest.mark.parametrize("num_blocks", range(1, 10))
def test_nvfp4_writes_as_many_blocks_as_there_are(
    isa: str, rng: np.random.Generator, num_blocks: int
) -> None:
    x = rng.standard_normal((3, num_blocks * 16)).astype(np.float32)
    codes = np.full((4, num_blocks * 16), 99, np.int8)
    scales = np.full((4, num_blocks), -1, np.float32)
    kernels.quantize_nvfp4(x, 0.31, True, codes[:3], scales[:3])
    wanted_codes, wanted_scales = reference.quantize_nvfp4(x, 0.31, True)
    np.testing.assert_array_equal(codes[:3], wanted_codes)
    np.testing.assert_array_equal(scales[:3], wanted_scales)
    assert (codes[3] == 99).all()
    assert (scales[3] == -1).all()
