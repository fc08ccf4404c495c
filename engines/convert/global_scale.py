"""The scale of a whole tensor from compressed-tensors' divisor to modelopt's multiplier and back.

One library decodes code x f32(E4M3 / divisor), the other code x f32(E4M3 x multiplier). Both round, and the
rounded reciprocal gives the same product only for some scales: a float32 that does for all the block scales
in use is searched for. Where there is none, one is taken under which every weight is the same after the
rounding to bfloat16 that compressed-tensors' decoding ends with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import bfloat16, e2m1
from engines.fp4.nvfp4 import Convention, scale_table

_NEIGHBOURS = 4  # on either side; beyond, the scale 1.0 alone would be off by more than a unit


@dataclass(frozen=True, slots=True)
class EquivalentScale:
    """`value` as the other convention stores it.

    `exact`: every block scale in use decodes to the same float32. `equal_in_bfloat16`: every weight does once
    it is rounded to bfloat16. `max_relative_difference`: of the decoded block scales.
    """

    value: float
    exact: bool
    equal_in_bfloat16: bool
    max_relative_difference: float


def other_convention(convention: Convention) -> Convention:
    """modelopt for compressed-tensors and the other way round."""
    if convention is Convention.MODELOPT:
        return Convention.COMPRESSED_TENSORS
    return Convention.MODELOPT


def reciprocal(scale: float) -> float:
    """1 / scale, the nearest float32."""
    with np.errstate(over="ignore", divide="ignore"):
        return float(np.float32(1) / np.float32(scale))


def equivalent_scale(scale: float, convention: Convention, used: NDArray[np.bool_]) -> EquivalentScale | None:
    """The best scale of the other convention for `scale`; `used` bool [256] marks the block scales in use.

    None when the reciprocal does not fit float32.
    """
    target = other_convention(convention)
    wanted = scale_table(convention, scale)[used]
    best: tuple[tuple[bool, int, bool, int, int], np.float32] | None = None
    for distance, candidate in _candidates(scale):
        got = scale_table(target, float(candidate))[used]
        ulps = _ulps_apart(wanted, got)
        # compressed-tensors computes its divisor in bfloat16: such a candidate is likely the original
        is_unlikely = target is Convention.COMPRESSED_TENSORS and not _is_bfloat16(candidate)
        changes_weights = not _equal_in_bfloat16(wanted, got)
        key = (changes_weights, int(ulps.max(initial=0)), is_unlikely, int((ulps != 0).sum()), distance)
        if best is None or key < best[0]:
            best = key, candidate
    if best is None:
        return None
    value = float(best[1])
    got = scale_table(target, value)[used]
    return EquivalentScale(
        value=value,
        exact=best[0][1] == 0,
        equal_in_bfloat16=_equal_in_bfloat16(wanted, got),
        max_relative_difference=_relative_difference(wanted, got),
    )


def scales_in_use(scales: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the 256 bytes occur, bool [256]."""
    return np.bincount(scales.reshape(-1), minlength=256) > 0


def _candidates(scale: float) -> list[tuple[int, np.float32]]:
    """The nearest reciprocal and its neighbours, with their distance in units of the last place."""
    nearest = np.float32(reciprocal(scale))
    if not (np.isfinite(nearest) and nearest > 0):
        return []
    found = [(0, nearest)]
    for direction in (np.float32(np.inf), np.float32(0)):
        neighbour = nearest
        for distance in range(1, _NEIGHBOURS + 1):
            neighbour = np.nextafter(neighbour, direction)
            found.append((distance, neighbour))
    return [(distance, value) for distance, value in found if np.isfinite(value) and value > 0]


def _ulps_apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """Distance of float32 numbers of equal sign in units of the last place."""
    return np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32))


def _is_bfloat16(value: np.float32) -> bool:
    return bool(bfloat16.round_trip(np.array([value], np.float32))[0] == value)


def _equal_in_bfloat16(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    magnitudes = e2m1.VALUES[:8]
    return bool(
        np.array_equal(
            bfloat16.encode(a[:, None] * magnitudes),
            bfloat16.encode(b[:, None] * magnitudes),
        )
    )


def _relative_difference(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    counted = wanted != 0
    difference = np.abs(got[counted].astype(np.float64) - wanted[counted]) / np.abs(wanted[counted])
    return float(difference.max(initial=0.0))
