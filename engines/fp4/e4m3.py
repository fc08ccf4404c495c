"""E4M3 (the "fn" variant: no infinities, largest 448), the block scale of NVFP4, held as raw bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.fp4.rounding import count_reached, ties_to_even_thresholds

MAX = np.float32(448.0)
SMALLEST = np.float32(2.0**-9)
NAN_BYTES = (0x7F, 0xFF)


def _magnitude(code: int) -> float:
    exponent, mantissa = code >> 3, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


_MAGNITUDES = np.array([_magnitude(code) for code in range(127)], np.float32)
_TIES_TO_EVEN = ties_to_even_thresholds(_MAGNITUDES)
_POSITIVE = np.append(_MAGNITUDES, np.float32(np.nan))

VALUES: NDArray[np.float32] = np.concatenate([_POSITIVE, -_POSITIVE])
"""float32[256]: the number each byte stands for; 0x7f and 0xff are NaN, 0x80 is -0.0."""
VALUES.setflags(write=False)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 -> bytes, same shape: nearest, ties to even, saturating at +-448; NaN becomes 0x7f or 0xff."""
    codes = count_reached(np.abs(values), _TIES_TO_EVEN)
    codes = np.where(np.isnan(values), np.uint8(NAN_BYTES[0]), codes)
    stored: NDArray[np.uint8] = codes | np.where(np.signbit(values), np.uint8(0x80), np.uint8(0))
    return stored


def decode(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes -> float32, same shape. Exact."""
    return VALUES[stored]


def has_nan(stored: NDArray[np.uint8]) -> bool:
    """Whether any byte is one of the two NaNs."""
    return bool(((stored & np.uint8(0x7F)) == np.uint8(0x7F)).any())
