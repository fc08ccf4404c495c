"""E2M1, E4M3, E8M0 and bfloat16, each against ml_dtypes, exhaustively where the space is small."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.fp4 import bfloat16, e2m1, e4m3, e8m0

ALL_BYTES = np.arange(256, dtype=np.uint8)
MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def bits_of(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def wide_floats() -> np.ndarray:
    """Values of every exponent, with neighbours of round numbers, both signs."""
    random = np.random.default_rng(7)
    mantissas = np.concatenate([np.linspace(1, 2, 65, dtype=np.float32), random.uniform(1, 2, 64)])
    values = np.ldexp(mantissas[:, None].astype(np.float32), np.arange(-20, 12)).astype(np.float32).ravel()
    values = np.concatenate(
        [values, np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(1e9))]
    )
    return np.concatenate([values, -values, np.array([0.0, -0.0], np.float32)])


def test_e2m1_values_are_those_of_ml_dtypes() -> None:
    codes = np.arange(16, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(bits_of(e2m1.decode(codes)), bits_of(expected))


def test_e2m1_encode_agrees_with_ml_dtypes_but_for_the_sign_of_minus_zero() -> None:
    values = wide_floats()
    expected = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    expected[values == 0] = 0
    np.testing.assert_array_equal(e2m1.encode(values), expected)


@pytest.mark.parametrize("lower", range(7))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_e2m1_ties(lower: int, sign: float) -> None:
    tie = np.array([sign * (MAGNITUDES[lower] + MAGNITUDES[lower + 1]) / 2], np.float32)
    even = lower if lower % 2 == 0 else lower + 1
    sign_bit = 8 if sign < 0 else 0
    assert e2m1.encode(tie)[0] == even | sign_bit
    assert e2m1.encode_ties_to_zero(tie)[0] == lower | sign_bit


def test_e2m1_signs_of_zero_and_saturation() -> None:
    values = np.array([0.0, -0.0, 0.1, -0.1, 7.0, -1e30, np.inf], np.float32)
    assert e2m1.encode(values).tolist() == [0, 0, 0, 8, 7, 15, 7]
    assert e2m1.encode_ties_to_zero(values).tolist() == [8, 8, 0, 8, 7, 15, 7]


@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(0, 5), st.integers(0, 9).map(lambda n: 2 * n)),
        elements=st.integers(0, 15),
    )
)
def test_pack_and_unpack_are_inverse(codes: np.ndarray) -> None:
    packed = e2m1.pack(codes)
    assert packed.shape == (codes.shape[0], codes.shape[1] // 2)
    np.testing.assert_array_equal(e2m1.unpack(packed), codes)


def test_pack_puts_the_even_column_in_the_low_nibble() -> None:
    assert e2m1.pack(np.array([0x1, 0xA, 0xF, 0x2], np.uint8)).tolist() == [0xA1, 0x2F]


def test_pack_refuses_an_odd_number_of_columns() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        e2m1.pack(np.zeros((2, 3), np.uint8))


def test_e4m3_decodes_all_bytes() -> None:
    expected = ALL_BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(e4m3.decode(ALL_BYTES)), ~finite)
    np.testing.assert_array_equal(bits_of(e4m3.decode(ALL_BYTES)[finite]), bits_of(expected[finite]))
    assert tuple(ALL_BYTES[~finite]) == e4m3.NAN_BYTES


def test_e4m3_encode_agrees_with_ml_dtypes_below_its_maximum() -> None:
    values = wide_floats()
    values = values[np.abs(values) <= 448]
    expected = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(e4m3.encode(values), expected)


def test_e4m3_encode_round_trips_saturates_and_keeps_nan() -> None:
    finite = ALL_BYTES[~np.isnan(e4m3.decode(ALL_BYTES))]
    np.testing.assert_array_equal(e4m3.encode(e4m3.decode(finite)), finite)
    beyond = np.array([449.0, 1e9, np.inf, -np.inf, np.nan], np.float32)
    assert e4m3.encode(beyond).tolist() == [0x7E, 0x7E, 0x7E, 0xFE, 0x7F]


def test_e4m3_has_nan_sees_both_nans_only() -> None:
    assert e4m3.has_nan(np.array([0, 0x7F], np.uint8))
    assert e4m3.has_nan(np.array([[0xFF]], np.uint8))
    assert not e4m3.has_nan(np.delete(ALL_BYTES, [0x7F, 0xFF]))


def test_e8m0_decodes_all_bytes() -> None:
    decoded = e8m0.decode(ALL_BYTES)
    assert np.isnan(decoded[255])
    assert [Fraction(float(value)) for value in decoded[:255]] == [
        Fraction(2) ** (s - 127) for s in range(255)
    ]


def test_bfloat16_decodes_all_words_and_rounds_as_ml_dtypes() -> None:
    words = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(
        bits_of(bfloat16.decode(words)), bits_of(words.view(ml_dtypes.bfloat16).astype(np.float32))
    )
    random = np.random.default_rng(3)
    values = random.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[~np.isnan(values)], wide_floats()])
    ties = ((words[:-1].astype(np.uint32) << 16) | 0x8000).view(np.float32)
    values = np.concatenate([values, ties[np.isfinite(ties)]])
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(bfloat16.encode(values), expected)


def test_bfloat16_keeps_nan_and_shape() -> None:
    payload = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    encoded = bfloat16.encode(payload)
    assert encoded.shape == (1, 2)
    assert np.isnan(bfloat16.decode(encoded)).all()
    assert bfloat16.encode(np.array(1.5, np.float32)).shape == ()
