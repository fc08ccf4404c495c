"""E2M1, the 4-bit element of both formats: sign, two exponent bits, one mantissa bit (fp4-formats section 1).

code = sign << 3 | m, magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6. Two codes share a byte, the
even column in the low nibble.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.fp4.rounding import count_reached, ties_to_even_thresholds

MAX = np.float32(6.0)

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_MIDPOINTS = ((_MAGNITUDES[:-1] + _MAGNITUDES[1:]) / 2).astype(np.float32)
_TIES_TO_EVEN = ties_to_even_thresholds(_MAGNITUDES)
_TIES_TO_ZERO = np.nextafter(_MIDPOINTS, np.float32(np.inf))
_SIGN = np.uint8(8)

VALUES: NDArray[np.float32] = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
"""float32[16]: the number each code stands for; code 8 is -0.0."""
VALUES.setflags(write=False)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 -> codes 0..15, same shape: nearest, ties to the even code, magnitudes above 6 become 6.

    -0.0 becomes code 0 and a negative number that rounds to zero code 8, as both libraries do. Not for NaN.
    """
    codes = count_reached(np.abs(values), _TIES_TO_EVEN)
    codes |= np.where(values < 0, _SIGN, np.uint8(0))
    return codes


def encode_ties_to_zero(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of modelopt's MXFP4 export: ties toward zero; an exact zero of either sign becomes code 8."""
    codes = count_reached(np.abs(values), _TIES_TO_ZERO)
    codes |= np.where(values <= 0, _SIGN, np.uint8(0))
    return codes


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Codes 0..15 -> float32, same shape."""
    return VALUES[codes]


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [..., K] -> bytes [..., K/2], low nibble = even column. Raises ValueError for an odd K."""
    if codes.shape[-1] % 2:
        raise ValueError(f"cannot pack {codes.shape[-1]} columns two to a byte; expected an even number")
    packed: NDArray[np.uint8] = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [..., K/2] -> codes 0..15 [..., K]."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed >> np.uint8(4)
    return codes
