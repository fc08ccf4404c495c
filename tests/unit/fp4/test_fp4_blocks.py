"""MXFP4 and NVFP4 beyond the golden vectors: exhaustive decoding, bad input, properties."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.fp4 import e2m1, e4m3, mxfp4, nvfp4

ALL_BYTES = np.arange(256, dtype=np.uint8)
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
CT, MODELOPT = nvfp4.Convention.COMPRESSED_TENSORS, nvfp4.Convention.MODELOPT
WEIGHT_QUANTIZERS = [
    mxfp4.quantize,
    mxfp4.quantize_modelopt_export,
    nvfp4.quantize_weight_modelopt,
    lambda weight: nvfp4.quantize_weight_compressed_tensors(weight, bfloat16_model=False),
]


def every_packed_byte_under_every_scale(group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """packed [256, 256 * group/2] and scales [256, 256]: row s holds all bytes under scale s."""
    packed = np.tile(np.repeat(ALL_BYTES, group_size // 2), (256, 1))
    return packed, np.repeat(ALL_BYTES[:, None], 256, axis=1)


def independent_values(packed: np.ndarray) -> np.ndarray:
    nibbles = np.stack([packed % 16, packed // 16], axis=-1).reshape(packed.shape[0], -1)
    return nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def test_mxfp4_decodes_256_bytes_under_256_scales() -> None:
    packed, scales = every_packed_byte_under_every_scale(mxfp4.GROUP_SIZE)
    decoded = mxfp4.dequantize(packed, scales)
    exponents = np.repeat(scales.astype(int) - 127, mxfp4.GROUP_SIZE, axis=1)
    with np.errstate(over="ignore"):
        expected = np.ldexp(independent_values(packed), exponents).astype(np.float32)
    np.testing.assert_array_equal(decoded[:255], expected[:255])
    assert np.isnan(decoded[255]).all()


@pytest.mark.parametrize("global_scale", [1936.0, 0.0006830124766565859, 1.0])
@pytest.mark.parametrize("convention", [CT, MODELOPT])
def test_nvfp4_decodes_256_bytes_under_256_scales(convention: nvfp4.Convention, global_scale: float) -> None:
    packed, scales = every_packed_byte_under_every_scale(nvfp4.GROUP_SIZE)
    decoded = nvfp4.dequantize(packed, scales, global_scale, convention)
    block = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    product = block / np.float32(global_scale) if convention is CT else block * np.float32(global_scale)
    multiplier = product.astype(np.float32).astype(np.float64)  # rounded once, as in the library
    expected = (independent_values(packed) * np.repeat(multiplier, 16, axis=1)).astype(np.float32)
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("quantize", WEIGHT_QUANTIZERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_their_place(quantize, bad: float) -> None:
    weight = np.ones((3, 32), np.float32)
    weight[2, 5] = bad
    with pytest.raises(ValueError, match=r"1 non-finite values, the first at index \(2, 5\)"):
        quantize(weight)


@pytest.mark.parametrize("quantize", WEIGHT_QUANTIZERS)
def test_columns_that_are_no_multiple_of_the_group_are_refused(quantize) -> None:
    with pytest.raises(ValueError, match="24 columns"):
        quantize(np.ones((2, 24), np.float32))


@pytest.mark.parametrize("quantize", WEIGHT_QUANTIZERS)
def test_zeros_stay_zero_in_any_shape(quantize) -> None:
    quantized = quantize(np.zeros((2, 3, 64), np.float32))
    assert quantized.codes.shape == (2, 3, 64)
    assert not quantized.dequantized().any()


def test_mxfp4_activations_that_are_not_finite_become_nan_in_their_block_only() -> None:
    values = np.ones((2, 64), np.float32)
    values[0, 3], values[1, 40] = np.nan, np.inf
    decoded = mxfp4.quantize_activations(values).dequantized()
    assert np.isnan(decoded[0, :32]).all()
    assert np.isnan(decoded[1, 32:]).all()
    assert (decoded[0, 32:] == 1).all()
    assert (decoded[1, :32] == 1).all()


@given(hnp.arrays(np.float32, (4, 32), elements=FLOATS))
def test_mxfp4_block_maximum_uses_the_upper_half_of_the_range(values: np.ndarray) -> None:
    quantized = mxfp4.quantize(values)
    amax = np.abs(values).max(axis=-1)
    normal = amax >= 2.0**-120
    scaled = amax[normal] / quantized.multipliers[:, 0][normal]
    assert ((scaled >= 3.5) & (scaled < 7)).all()


@given(hnp.arrays(np.float32, (2, 32), elements=st.floats(-1e4, 1e4, width=32)))
def test_requantising_mxfp4_changes_nothing(values: np.ndarray) -> None:
    once = mxfp4.quantize(values).dequantized()
    np.testing.assert_array_equal(mxfp4.quantize(once).dequantized(), once)


def test_calibrated_maximum_saturates_activations() -> None:
    values = np.full((1, 16), 100.0, np.float32)
    for quantized in (
        nvfp4.quantize_activations_compressed_tensors(values, 2688.0),
        nvfp4.quantize_activations_modelopt(values, 1 / 2688),
    ):
        assert (quantized.scales == e4m3.encode(np.array(448.0, np.float32))).all()
        np.testing.assert_allclose(quantized.dequantized(), 1.0, rtol=1e-6)


def test_empty_and_zero_blocks_follow_each_library() -> None:
    zeros = np.zeros((1, 16), np.float32)
    assert e4m3.decode(nvfp4.quantize_activations_compressed_tensors(zeros, 5.0).scales)[0, 0] == 0.125
    assert e4m3.decode(nvfp4.quantize_activations_modelopt(zeros, 5.0).scales)[0, 0] == 1.0
    tiny = np.full((1, 16), 1e-9, np.float32)
    assert e4m3.decode(nvfp4.quantize_activations_modelopt(tiny, 5.0).scales)[0, 0] == 2.0**-9
    assert mxfp4.quantize(np.zeros((0, 32), np.float32)).packed.shape == (0, 16)


def test_bfloat16_model_rounds_the_global_scale() -> None:
    weight = np.zeros((1, 16), np.float32)
    weight[0, 0] = 1.0859375
    exact = nvfp4.global_scale_compressed_tensors(weight, bfloat16_model=False)
    rounded = nvfp4.global_scale_compressed_tensors(weight, bfloat16_model=True)
    assert abs(exact - 2688 / 1.0859375) < 1e-3
    assert rounded != exact
    assert rounded == float(np.float32(rounded).astype(ml_dtypes.bfloat16))


def test_tables_are_read_only() -> None:
    for table in (e2m1.VALUES, e4m3.VALUES):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1
