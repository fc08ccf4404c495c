"""E8M0, the block scale of MXFP4: byte s stands for 2^(s-127), 255 for NaN (OCP MX 1.0, section 5.4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BIAS = 127
NAN = 255

VALUES: NDArray[np.float32] = np.ldexp(1.0, np.append(np.arange(255), 0) - BIAS).astype(np.float32)
"""float32[256]: the number each byte stands for. Byte 0 is 2^-127, subnormal in float32 and exact."""
VALUES[NAN] = np.nan
VALUES.setflags(write=False)


def decode(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes -> float32, same shape."""
    return VALUES[stored]
