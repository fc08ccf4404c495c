"""Round-to-nearest by table search, shared by the small floating-point formats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW_THRESHOLDS = 16


def ties_to_even_thresholds(magnitudes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smallest float32 that rounds to code i+1 or above, for ascending float32 `magnitudes` [n] -> [n-1].

    A tie between codes i and i+1 goes to the even one, so the midpoint itself belongs to code i+1 only
    where i is odd. All midpoints of E2M1 and E4M3 are exact in float32.
    """
    midpoints = ((magnitudes[:-1].astype(np.float64) + magnitudes[1:]) / 2).astype(np.float32)
    above = np.nextafter(midpoints, np.float32(np.inf))
    is_odd = np.arange(midpoints.size) % 2 == 1
    return np.where(is_odd, midpoints, above).astype(np.float32)


def count_reached(magnitudes: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How many ascending `thresholds` (fewer than 256) each magnitude reaches: its code (uint8).

    A NaN reaches none of a few thresholds and all of many; callers treat it themselves.
    """
    if thresholds.size > _FEW_THRESHOLDS:
        return np.searchsorted(thresholds, magnitudes, side="right").astype(np.uint8)
    counts = np.zeros(np.shape(magnitudes), np.uint8)
    for threshold in thresholds:  # whole-array comparisons: fifty times faster than a search per element
        counts += np.greater_equal(magnitudes, threshold).view(np.uint8)
    return counts


def require_finite(values: NDArray[Any], what: str) -> None:
    """Raise ValueError when `values` hold a NaN or an infinity, naming the first place.

    The libraries quantise such a tensor to garbage without a word (fp4-formats sections 2 to 4).
    """
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{what} holds {int((~finite).sum())} non-finite values, the first at index {index} is "
            f"{float(values[index])}; expected finite numbers: check the source tensor"
        )
