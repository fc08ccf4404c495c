"""Divisor to multiplier and back: exact where a float32 exists for it, said plainly where none does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.convert.global_scale import equivalent_scale, other_convention, scales_in_use
from engines.fp4 import bfloat16, e2m1
from engines.fp4.nvfp4 import Convention, scale_table

ALL_POSITIVE = np.zeros(256, bool)
ALL_POSITIVE[1:127] = True
CONVENTIONS = list(Convention)


def decoded(scale: float, convention: Convention) -> np.ndarray:
    """Every product of a magnitude and a positive block scale, float32 [126, 8]."""
    return scale_table(convention, scale)[ALL_POSITIVE][:, None] * e2m1.VALUES[:8]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("exponent", [-30, -1, 0, 7, 30])
def test_powers_of_two_are_exact(convention: Convention, exponent: int) -> None:
    found = equivalent_scale(2.0**exponent, convention, ALL_POSITIVE)
    assert found is not None
    assert found.value == 2.0**-exponent
    assert found.exact
    assert found.max_relative_difference == 0


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=150, deadline=None)
@given(scale=st.floats(2.0**-20, 2.0**20, width=32))
def test_what_is_said_of_a_scale_is_true(convention: Convention, scale: float) -> None:
    found = equivalent_scale(scale, convention, ALL_POSITIVE)
    assert found is not None
    before, after = decoded(scale, convention), decoded(found.value, other_convention(convention))
    assert found.exact == np.array_equal(before, after)
    rounded = [bfloat16.encode(one) for one in (before, after)]
    assert found.equal_in_bfloat16 == np.array_equal(*rounded)
    difference = np.abs(after.astype(np.float64) - before)[:, 1:] / before[:, 1:]
    assert found.max_relative_difference <= 2.0**-23
    assert difference.max() <= 2.0**-22  # of a weight: the product is rounded once more


@settings(max_examples=150, deadline=None)
@given(mantissa=st.integers(128, 255), exponent=st.integers(-10, 14))
def test_a_bfloat16_divisor_is_bit_equal_in_bfloat16_there_and_back(mantissa: int, exponent: int) -> None:
    """What compressed-tensors writes for a bfloat16 model."""
    divisor = mantissa / 128 * 2.0**exponent
    there = equivalent_scale(divisor, Convention.COMPRESSED_TENSORS, ALL_POSITIVE)
    assert there is not None
    assert there.equal_in_bfloat16
    back = equivalent_scale(there.value, Convention.MODELOPT, ALL_POSITIVE)
    assert back is not None
    before = decoded(divisor, Convention.COMPRESSED_TENSORS)
    after = decoded(back.value, Convention.COMPRESSED_TENSORS)
    assert np.array_equal(bfloat16.encode(before), bfloat16.encode(after))


def test_a_quarter_of_the_bfloat16_divisors_have_an_exact_multiplier() -> None:
    """The figure that docs/conversion.md gives."""
    found = [equivalent_scale(float(m), Convention.COMPRESSED_TENSORS, ALL_POSITIVE) for m in range(128, 256)]
    assert sum(one is not None and one.exact for one in found) == 31


def test_a_neighbour_of_the_reciprocal_is_found_when_it_alone_is_exact() -> None:
    """With block scales of 1.5 alone the nearest reciprocal fails for some divisors and a neighbour does."""
    used = np.zeros(256, bool)
    used[0x3C] = True  # 1.5
    rescued = 0
    for divisor in range(128, 256):
        nearest = np.float32(1) / np.float32(divisor)
        found = equivalent_scale(float(divisor), Convention.COMPRESSED_TENSORS, used)
        assert found is not None
        nearest_is_exact = np.float32(1.5) * nearest == np.float32(1.5) / np.float32(divisor)
        rescued += found.exact and not nearest_is_exact
        assert not (nearest_is_exact and found.value != nearest)
    assert rescued > 0


def test_no_reciprocal_in_float32() -> None:
    assert equivalent_scale(1e-45, Convention.MODELOPT, ALL_POSITIVE) is None


def test_scales_in_use() -> None:
    used = scales_in_use(np.array([[3, 3], [250, 0]], np.uint8))
    assert np.flatnonzero(used).tolist() == [0, 3, 250]
