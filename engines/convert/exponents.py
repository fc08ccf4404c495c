"""MXFP4 to NVFP4 without touching a code: each power-of-two scale of 32 becomes two E4M3 scales of 16.

E4M3 holds the 18 powers of two from 2^-9 to 2^8, so relative to a power-of-two global scale the block
exponents of a whole fused group (layers that share a global scale) may span 17 binades. A block whose codes
are all zero is zero under any scale and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import Fp4Tensors
from engines.fp4 import e2m1, e4m3, e8m0, mxfp4, nvfp4

LARGEST_EXPONENT = 8  # of a power of two in E4M3
SMALLEST_EXPONENT = -9
MAX_SPAN = LARGEST_EXPONENT - SMALLEST_EXPONENT
_SMALLEST_GLOBAL_EXPONENT = -126  # its reciprocal, the divisor of compressed-tensors, has to be finite
_SPLIT = mxfp4.GROUP_SIZE // nvfp4.GROUP_SIZE
_NONZERO_BITS = np.uint8(0x77)  # of two packed codes, without their signs


@dataclass(frozen=True, slots=True)
class ExponentRange:
    """The smallest and largest block exponent (scale 2^exponent) among blocks that hold a nonzero code."""

    smallest: int
    largest: int

    @property
    def span(self) -> int:
        """Binades from the smallest to the largest scale."""
        return self.largest - self.smallest


@dataclass(frozen=True, slots=True, eq=False)
class RewrittenBlocks:
    """`packed` uint8 [N, K/2], the source's own array unless `num_requantized` blocks of 32 had to change;
    `scales` uint8 [N, K/16], E4M3 bytes."""

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    num_requantized: int


def exponent_range(module: Fp4Tensors) -> ExponentRange | None:
    """The range of an MXFP4 module; None when all its codes are zero."""
    stored = module.scales[nonzero_blocks(module.packed)]
    if stored.size == 0:
        return None
    return ExponentRange(int(stored.min()) - e8m0.BIAS, int(stored.max()) - e8m0.BIAS)


def joint_range(ranges: Sequence[ExponentRange | None]) -> ExponentRange | None:
    """The range of several modules that share a global scale."""
    known = [one for one in ranges if one is not None]
    if not known:
        return None
    return ExponentRange(min(one.smallest for one in known), max(one.largest for one in known))


def global_exponent(joint: ExponentRange | None) -> int:
    """The exponent of the global scale (a multiplier) that puts the largest block scale at 2^8.

    As high as can be, so that block scales stay away from E4M3's subnormals, as quantised files have them.
    """
    if joint is None:
        return 0
    return max(joint.largest - LARGEST_EXPONENT, _SMALLEST_GLOBAL_EXPONENT)


def rewrite_blocks(module: Fp4Tensors, global_exponent: int, zero_scale: float) -> RewrittenBlocks:
    """The NVFP4 form of an MXFP4 module under the global scale 2^`global_exponent`.

    Blocks of zeros get `zero_scale`, as the target's library writes them. Blocks whose exponent lies below
    what E4M3 reaches get the smallest scale and the nearest codes under it: the only inexact ones.
    """
    exponents = module.scales.astype(np.int32) - e8m0.BIAS - global_exponent  # [N, K/32]
    nonzero = nonzero_blocks(module.packed)
    if (exponents > LARGEST_EXPONENT)[nonzero].any():
        raise ValueError(f"global exponent {global_exponent} is too small for {module.name}")
    too_small = nonzero & (exponents < SMALLEST_EXPONENT)
    reachable = np.clip(exponents, SMALLEST_EXPONENT, LARGEST_EXPONENT)
    scales = e4m3.encode(np.ldexp(np.float32(1), reachable))
    scales = np.where(nonzero, scales, e4m3.encode(np.array(zero_scale, np.float32)))
    packed = module.packed
    if too_small.any():
        packed = packed.copy()
        blocks = packed.reshape(*too_small.shape, mxfp4.GROUP_SIZE // 2)
        shift = exponents[too_small] - SMALLEST_EXPONENT  # negative
        values = np.ldexp(e2m1.decode(e2m1.unpack(blocks[too_small])), shift[:, None])
        blocks[too_small] = e2m1.pack(e2m1.encode(values.astype(np.float32)))
    return RewrittenBlocks(packed, np.repeat(scales, _SPLIT, axis=-1), int(too_small.sum()))


def nonzero_blocks(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which blocks of 32 hold a code other than the two zeros: packed [N, K/2] -> bool [N, K/32]."""
    blocks = packed.reshape(*packed.shape[:-1], -1, mxfp4.GROUP_SIZE // 2)
    nonzero: NDArray[np.bool_] = (blocks & _NONZERO_BITS).any(axis=-1)
    return nonzero
