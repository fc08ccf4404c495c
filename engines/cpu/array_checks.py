"""What the facade asks of arrays before the compiled kernels see them: each refusal names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT32 = np.dtype(np.float32)
UINT8 = np.dtype(np.uint8)
INT8 = np.dtype(np.int8)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)
# Of unquantized weights and embeddings; bfloat16 has no dtype in NumPy, its bits are uint16.
DENSE_DTYPES = (FLOAT32, np.dtype(np.float16), np.dtype(np.uint16))


def check_array(
    name: str,
    array: NDArray[Any],
    dtypes: tuple[np.dtype[Any], ...] | np.dtype[Any],
    shape: tuple[int | None, ...],
) -> None:
    """Raise unless it is a C-contiguous array of that type and shape, None standing for any length.

    TypeError for what is no array or of another dtype, ValueError for the rest.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if array.dtype not in allowed:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, allowed))}, got {array.dtype}")
    if array.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")


def check_output(
    name: str,
    array: NDArray[Any],
    dtypes: tuple[np.dtype[Any], ...] | np.dtype[Any],
    shape: tuple[int | None, ...],
) -> None:
    """`check_array` for what a kernel writes to; ValueError too when it is read-only."""
    check_array(name, array, dtypes, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable")
