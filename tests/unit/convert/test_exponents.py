"""MXFP4 to NVFP4 by exponents: exact up to 17 binades, refused beyond, for any codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.checkpoint.tensors import Fp4Tensors
from engines.convert.errors import NotLossless
from engines.convert.exponents import ExponentRange, exponent_range, global_exponent, nonzero_blocks
from engines.convert.rewrites import plan_rewrites
from engines.convert.verification import compare_weights
from engines.fp4 import e2m1
from engines.fp4.nvfp4 import Convention

CONVENTIONS = list(Convention)


def mxfp4_module(stored: np.ndarray, seed: int = 0, name: str = "layer") -> Fp4Tensors:
    """A module with the scale bytes `stored` [N, K/32] and random codes, no block of which is all zero."""
    num_rows, num_blocks = stored.shape
    codes = np.random.default_rng(seed).integers(0, 16, (num_rows, num_blocks * 32), np.uint8)
    codes[:, ::32] = 9
    packed, scales = e2m1.pack(codes), stored.astype(np.uint8)
    return Fp4Tensors(
        name, "mxfp4", "compressed-tensors", num_rows, num_blocks * 32, 32, packed, scales, None, None, True
    )


def with_zero_block(module: Fp4Tensors, row: int, block: int) -> Fp4Tensors:
    module.packed[row, block * 16 : (block + 1) * 16] = 0x80  # codes 0 and 8: both zeros
    return module


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=60, deadline=None)
@given(lowest=st.integers(0, 254 - 17), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_exponents_within_17_binades_keep_every_bit(
    convention: Convention, lowest: int, seed: int, data: st.DataObject
) -> None:
    span = data.draw(st.integers(0, 17))
    stored = np.random.default_rng(seed).integers(lowest, lowest + span + 1, (3, 4))
    stored[0, 0], stored[2, 3] = lowest, lowest + span
    module = mxfp4_module(stored, seed)
    (rewrite,) = plan_rewrites([module], convention, lossy=False)
    converted = rewrite.apply(module)
    assert compare_weights(module, converted).equal_in_float32
    assert converted.packed is module.packed  # codes byte for byte
    assert converted.scales.shape == (3, 8)
    assert (converted.format, converted.group_size, converted.convention) == ("nvfp4", 16, convention.value)


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=30, deadline=None)
@given(lowest=st.integers(0, 254 - 40), span=st.integers(18, 40), seed=st.integers(0, 2**32 - 1))
def test_more_than_17_binades_are_refused_by_name(
    convention: Convention, lowest: int, span: int, seed: int
) -> None:
    stored = np.full((2, 4), lowest + span)
    stored[1, 2] = lowest
    wide = mxfp4_module(stored, seed, "model.layers.3.mlp.up_proj")
    narrow = mxfp4_module(np.full((2, 4), lowest + span), seed, "model.layers.3.mlp.gate_proj")
    with pytest.raises(NotLossless, match=rf"^model\.layers\.3\.mlp\.up_proj.*span of {span} binades"):
        plan_rewrites([narrow, wide], convention, lossy=False)


def test_the_span_is_that_of_the_whole_fused_group() -> None:
    group = [mxfp4_module(np.full((2, 2), byte), byte, f"layer{byte}") for byte in (100, 110, 118)]
    with pytest.raises(NotLossless, match="layer100"):
        plan_rewrites(group, Convention.MODELOPT, lossy=False)
    rewrites = plan_rewrites(group[1:], Convention.MODELOPT, lossy=False)
    scales = {rewrite.apply(m).global_scale for rewrite, m in zip(rewrites, group[1:], strict=True)}
    assert scales == {2.0 ** (118 - 127 - 8)}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("far", [0, 254])
def test_blocks_of_zeros_do_not_count(convention: Convention, far: int) -> None:
    stored = np.full((2, 3), 120)
    stored[0, 1], stored[1, 2] = 103, far
    module = with_zero_block(mxfp4_module(stored), 1, 2)
    assert exponent_range(module) == ExponentRange(103 - 127, 120 - 127)
    (rewrite,) = plan_rewrites([module], convention, lossy=False)
    converted = rewrite.apply(module)
    assert compare_weights(module, converted).equal_in_float32
    zero_scale = {Convention.MODELOPT: 0x38, Convention.COMPRESSED_TENSORS: 0x20}[convention]
    assert converted.scales[1, 4:].tolist() == [zero_scale, zero_scale]  # as the library writes zeros


def test_a_module_of_zeros_alone_converts() -> None:
    module = mxfp4_module(np.zeros((1, 1), int))
    module.packed[:] = 0
    (rewrite,) = plan_rewrites([module], Convention.MODELOPT, lossy=False)
    converted = rewrite.apply(module)
    assert converted.global_scale == 1.0
    assert not converted.decoded(False).any()


def test_the_largest_scale_is_put_at_the_top_of_e4m3() -> None:
    module = mxfp4_module(np.array([[120, 121, 122]]))
    (rewrite,) = plan_rewrites([module], Convention.MODELOPT, lossy=False)
    converted = rewrite.apply(module)
    assert converted.scales[0].tolist() == [0x68, 0x68, 0x70, 0x70, 0x78, 0x78]  # 64, 128, 256
    assert converted.global_scale == 2.0 ** (122 - 127 - 8)


def test_the_reciprocal_of_the_global_scale_stays_finite() -> None:
    assert global_exponent(ExponentRange(-127, -127)) == -126
    module = mxfp4_module(np.array([[0]]))
    (rewrite,) = plan_rewrites([module], Convention.COMPRESSED_TENSORS, lossy=False)
    assert compare_weights(module, rewrite.apply(module)).equal_in_float32


def test_lossy_changes_the_offending_blocks_alone() -> None:
    stored = np.full((2, 3), 120)
    stored[1, 1] = 120 - 18  # one binade too low
    module = mxfp4_module(stored)
    codes = e2m1.unpack(module.packed)
    codes[1, 32:64] = np.tile([1, 2, 3, 4, 5, 6, 7, 9], 4)  # 0.5 1 1.5 2 3 4 6 -0.5
    module.packed[:] = e2m1.pack(codes)
    (rewrite,) = plan_rewrites([module], Convention.MODELOPT, lossy=True)
    converted = rewrite.apply(module)
    before, after = module.decoded(False), converted.decoded(False)
    changed = np.zeros(before.shape, bool)
    changed[1, 32:64] = True
    assert np.array_equal(before[~changed], after[~changed])
    # halved and rounded to the nearest code, ties to even: 0.25 0.5 0.75 1 1.5 2 3 -0.25
    expected = np.tile([0, 0.5, 1, 1, 1.5, 2, 3, -0.0], 4) * 2.0 ** (120 - 17 - 127)
    assert np.array_equal(after[1, 32:64], expected.astype(np.float32))
    difference = compare_weights(module, converted)
    assert not difference.equal_in_float32
    assert not difference.equal_in_bfloat16
    assert difference.max_error == 0.5 * 2.0 ** (120 - 18 - 127)


def test_nonzero_blocks_tells_signed_zeros_from_codes() -> None:
    packed = np.zeros((1, 48), np.uint8)
    packed[0, 16:32] = 0x88
    packed[0, 47] = 0x10
    assert nonzero_blocks(packed).tolist() == [[False, False, True]]
