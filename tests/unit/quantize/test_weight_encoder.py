"""Whole weights: the same as the formats' own functions, in any number of chunks; damaged ones are named."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from engines.checkpoint.tensors import DenseTensors
from engines.fp4 import bfloat16, mxfp4, nvfp4
from engines.quantize import weight_encoder
from engines.quantize.errors import WeightError
from engines.quantize.weight_encoder import Fitting, WeightEncoder
from engines.quantize.weight_format import WeightGrid


@pytest.fixture
def encoder() -> Iterator[WeightEncoder]:
    with WeightEncoder("rtn", 2) as opened:
        yield opened


def dense(values: np.ndarray, dtype: str = "BF16") -> DenseTensors:
    if dtype == "BF16":
        return DenseTensors(
            "model.layers.3.mlp.up_proj", dtype, values.astype(ml_dtypes.bfloat16).view(np.uint16)
        )
    return DenseTensors(
        "model.layers.3.mlp.up_proj", dtype, values.astype({"F16": "<f2", "F32": "<f4"}[dtype])
    )


def random_weight() -> np.ndarray:
    return (0.02 * np.random.default_rng(0).standard_normal((70, 96))).astype(np.float32)


@pytest.mark.parametrize("chunk_elements", [96, 1000, 10**6])
def test_rounding_equals_the_formats_own_functions(encoder, monkeypatch, chunk_elements):
    monkeypatch.setattr(weight_encoder, "_CHUNK_ELEMENTS", chunk_elements)
    tensors = dense(random_weight())
    weight = tensors.as_float32()
    expected = {
        ("mxfp4", "compressed-tensors"): mxfp4.quantize(weight),
        ("nvfp4", "compressed-tensors"): nvfp4.quantize_weight_compressed_tensors(
            weight, bfloat16_model=True
        ),
        ("nvfp4", "modelopt"): nvfp4.quantize_weight_modelopt(weight),
    }
    for (format, layout), blocks in expected.items():
        amax = encoder.amax(tensors)
        grid = WeightGrid.for_group(format, layout, amax, bfloat16_model=True, headroom=False)
        encoded = encoder.encode(tensors, grid, Fitting())
        np.testing.assert_array_equal(encoded.packed, blocks.packed)
        np.testing.assert_array_equal(encoded.scales, blocks.scales)
        assert encoded.global_scale == (None if blocks.global_scale is None else float(blocks.global_scale))
        error = np.square(weight.astype(np.float64) - blocks.dequantized()).sum()
        assert encoded.squared_error == pytest.approx(error, rel=1e-4)
        assert encoded.squared_norm == pytest.approx(np.square(weight).sum(), rel=1e-4)


def test_the_output_error_weighs_columns(encoder):
    tensors = dense(random_weight())
    importance = np.zeros(96, np.float32)
    importance[5] = 2.0
    grid = WeightGrid.for_group(
        "mxfp4", "compressed-tensors", np.float32(1), bfloat16_model=True, headroom=False
    )
    encoded = encoder.encode(tensors, grid, Fitting(importance))
    weight = tensors.as_float32()
    missed = weight - mxfp4.quantize(weight).dequantized()
    assert encoded.output_error == pytest.approx(2 * np.square(missed[:, 5]).sum(), rel=1e-4)
    assert encoded.output_norm == pytest.approx(2 * np.square(weight[:, 5]).sum(), rel=1e-4)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_amax(encoder, dtype):
    values = random_weight()
    values[69, 95] = -3.5
    assert encoder.amax(dense(values, dtype)) == 3.5


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_named(encoder, dtype, value):
    values = random_weight()
    values[12, 34] = value
    with pytest.raises(WeightError, match=r"model\.layers\.3\.mlp\.up_proj\.weight holds 1 .* \[12, 34\]"):
        encoder.amax(dense(values, dtype))


def test_a_weight_of_zeros_decodes_to_zeros(encoder):
    tensors = dense(np.zeros((4, 32), np.float32))
    for layout in ("compressed-tensors", "modelopt"):
        grid = WeightGrid.for_group("nvfp4", layout, np.float32(0), bfloat16_model=True, headroom=False)
        encoded = encoder.encode(tensors, grid, Fitting())
        decoded = nvfp4.dequantize(
            encoded.packed, encoded.scales, encoded.global_scale, nvfp4.Convention(layout)
        )
        assert not decoded.any()
        assert np.isfinite(grid.global_scale)
        assert grid.global_scale > 0


def test_bfloat16_values_stay_what_they_are():
    tensors = dense(random_weight())
    np.testing.assert_array_equal(tensors.as_float32(), bfloat16.round_trip(random_weight()))
