"""A common scale either keeps every decoded block scale's bits, or there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.checkpoint.tensors import Fp4Tensors
from engines.fp4 import e4m3
from engines.trtllm.errors import BuildRefused
from engines.trtllm.scale_fusion import fuse_scales

TEMPLATE = Fp4Tensors(
    name="layer",
    format="nvfp4",
    convention="modelopt",
    num_rows=1,
    num_columns=64,
    group_size=16,
    packed=np.zeros((1, 32), np.uint8),
    scales=np.zeros((1, 4), np.uint8),
    global_scale=1.0,
    input_scale=1.0,
    quantizes_activations=True,
)


def module(scales: list[int], global_scale: float) -> Fp4Tensors:
    return replace(
        TEMPLATE, scales=np.array([scales], np.uint8), global_scale=float(np.float32(global_scale))
    )


@given(
    first=st.lists(st.integers(0, 0x7E), min_size=4, max_size=4),
    second=st.lists(st.integers(0, 0x7E), min_size=4, max_size=4),
    scale=st.floats(2.0**-20, 1.0, width=32),
    factor=st.sampled_from([1.0, 0.5, 0.25, 0.0625, 2.0, 0.75, 1.1]),
)
def test_what_is_stored_means_what_it_meant(
    first: list[int], second: list[int], scale: float, factor: float
) -> None:
    members = (module(first, scale), module(second, scale * factor))
    try:
        fused = fuse_scales(members)
    except BuildRefused:
        assert factor != 1.0
        return
    assert fused.global_scale in {np.float32(member.global_scale) for member in members}
    for index, member in enumerate(members):
        before = e4m3.VALUES[member.scales] * np.float32(member.global_scale)
        after = e4m3.VALUES[fused.stored_scales(index, member.scales)] * fused.global_scale
        assert np.array_equal(before.view(np.uint32), after.view(np.uint32))


def test_a_scale_that_would_leave_the_range_is_refused_in_both_directions() -> None:
    smallest, largest = 0x01, 0x7E
    with pytest.raises(BuildRefused, match="unequal weight_scale_2"):
        fuse_scales((module([largest, smallest, 8, 8], 1.0), module([largest, smallest, 8, 8], 0.5)))


def test_the_larger_scale_is_preferred() -> None:
    fused = fuse_scales((module([8, 16, 24, 32], 0.5), module([16, 24, 32, 40], 1.0)))
    assert fused.global_scale == 1.0
    assert list(fused.stored_scales(0, np.array([16], np.uint8))) == [8]
