"""bfloat16 held as raw uint16 bits, because NumPy has no such type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def decode(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Raw bfloat16 bits (uint16) -> the same numbers in float32, any shape. Exact."""
    wide: NDArray[np.uint32] = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 -> raw bfloat16 bits, rounded to nearest, ties to even; NaN becomes a quiet NaN of its sign."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits.astype(np.uint64) + np.uint64(0x7FFF) + odd) >> np.uint64(16)).astype(np.uint16)
    quiet_nan = ((bits >> np.uint32(16)) | np.uint32(0x0040)).astype(np.uint16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    encoded: NDArray[np.uint16] = np.where(is_nan, quiet_nan, rounded).reshape(np.shape(values))
    return encoded


def round_trip(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 rounded to the nearest bfloat16, still held as float32."""
    return decode(encode(values))
