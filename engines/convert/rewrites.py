"""What happens to one FP4 module: its blocks rewritten, its global scale inverted, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from engines.checkpoint.tensors import Fp4Tensors
from engines.convert.errors import ConversionError, NotLossless
from engines.convert.exponents import (
    MAX_SPAN,
    ExponentRange,
    exponent_range,
    global_exponent,
    joint_range,
    rewrite_blocks,
)
from engines.convert.global_scale import EquivalentScale, equivalent_scale, scales_in_use
from engines.fp4.nvfp4 import GROUP_SIZE, Convention

# What the libraries store for a block of zeros (fp4-formats sections 3 and 4).
_ZERO_BLOCK_SCALES = {Convention.COMPRESSED_TENSORS: 0.125, Convention.MODELOPT: 1.0}


class Rewrite(Protocol):
    """How a module becomes NVFP4 in the target's convention; small, the arrays are made when asked for."""

    def apply(self, source: Fp4Tensors) -> Fp4Tensors:
        """The module in the target's form, without an input scale and under its old name."""
        ...

    def global_scale(self, source: Fp4Tensors) -> float:
        """That of `apply`, as the target stores it."""
        ...


@dataclass(frozen=True, slots=True)
class ExponentRewrite:
    """MXFP4 to NVFP4 under the global scale 2^`exponent` (as a multiplier).

    `span`: binades that the block scales of the fused group span.
    """

    exponent: int
    convention: Convention
    span: int

    def apply(self, source: Fp4Tensors) -> Fp4Tensors:
        blocks = rewrite_blocks(source, self.exponent, _ZERO_BLOCK_SCALES[self.convention])
        return replace(
            source,
            format="nvfp4",
            convention=self.convention.value,
            group_size=GROUP_SIZE,
            packed=blocks.packed,
            scales=blocks.scales,
            global_scale=self.global_scale(source),
            input_scale=None,
        )

    def global_scale(self, source: Fp4Tensors) -> float:
        stored = -self.exponent if self.convention is Convention.COMPRESSED_TENSORS else self.exponent
        return float(np.ldexp(1.0, stored))


@dataclass(frozen=True, slots=True)
class GlobalScaleRewrite:
    """NVFP4 from one convention to the other: codes and block scales stay as they are."""

    scale: EquivalentScale
    convention: Convention

    def apply(self, source: Fp4Tensors) -> Fp4Tensors:
        return replace(
            source, convention=self.convention.value, global_scale=self.scale.value, input_scale=None
        )

    def global_scale(self, source: Fp4Tensors) -> float:
        return self.scale.value


@dataclass(frozen=True, slots=True)
class Unchanged:
    """NVFP4 that is in the target's convention already (beside MXFP4 in one checkpoint)."""

    def apply(self, source: Fp4Tensors) -> Fp4Tensors:
        return replace(source, input_scale=None)

    def global_scale(self, source: Fp4Tensors) -> float:
        assert source.global_scale is not None
        return source.global_scale


def plan_rewrites(group: Sequence[Fp4Tensors], target: Convention, *, lossy: bool) -> list[Rewrite]:
    """One rewrite for each module of a fused group, i.e. of layers that share a global scale.

    Raises NotLossless, unless `lossy`, naming the tensor that has no bit-equal form.
    """
    mxfp4 = [module for module in group if module.format == "mxfp4"]
    joint = _shared_range(mxfp4, lossy=lossy)
    rewrites: list[Rewrite] = []
    for module in group:
        if module.format == "mxfp4":
            span = joint.span if joint is not None else 0
            rewrites.append(ExponentRewrite(global_exponent(joint), target, span))
        elif module.convention == target.value:
            rewrites.append(Unchanged())
        else:
            # Members of a group mostly have one scale; then the search has to serve the bytes of them all.
            sharing = [one for one in group if one.global_scale == module.global_scale]
            rewrites.append(GlobalScaleRewrite(_inverted(module, sharing, lossy=lossy), target))
    return rewrites


def _shared_range(modules: Sequence[Fp4Tensors], *, lossy: bool) -> ExponentRange | None:
    ranges = [exponent_range(module) for module in modules]
    joint = joint_range(ranges)
    if joint is not None and joint.span > MAX_SPAN and not lossy:
        raise NotLossless(_too_wide(modules, ranges, joint))
    return joint


def _too_wide(
    modules: Sequence[Fp4Tensors], ranges: Sequence[ExponentRange | None], joint: ExponentRange
) -> str:
    (offending, its_range), *_ = [
        (module, one)
        for module, one in zip(modules, ranges, strict=True)
        if one is not None and one.smallest == joint.smallest
    ]
    shared = f" of {', '.join(module.name for module in modules)}" if len(modules) > 1 else ""
    return (
        f"{offending.name}.weight_scale: its block scales go down to 2^{its_range.smallest}, and the "
        f"largest{shared} is 2^{joint.largest}: a span of {joint.span} binades; NVFP4 holds {MAX_SPAN} under "
        "one global scale. Pass --lossy to round the blocks below to the nearest NVFP4 values"
    )


def _inverted(module: Fp4Tensors, sharing: Sequence[Fp4Tensors], *, lossy: bool) -> EquivalentScale:
    assert module.global_scale is not None
    used = np.logical_or.reduce([scales_in_use(one.scales) for one in sharing])
    found = equivalent_scale(module.global_scale, Convention(module.convention), used)
    if found is None:
        raise ConversionError(
            f"{module.name}: its global scale {module.global_scale:g} has no reciprocal in float32; "
            "expected a scale within float32's normal range"
        )
    if not found.equal_in_bfloat16 and not lossy:
        raise NotLossless(
            f"{module.name}: no float32 global scale reproduces its decoded weights in the other layout, not "
            f"even rounded to bfloat16; the nearest differs by {found.max_relative_difference:.2e} of a "
            "weight before that rounding. Pass --lossy to accept it"
        )
    return found
