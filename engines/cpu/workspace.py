"""Scratch memory of one forward pass, kept between steps so that large activations are not paged in anew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Workspace:
    """Named buffers that only grow. Two arrays of the same name share memory: use a name for one purpose."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An uninitialised, contiguous array of `shape`; valid until the next call with the same name."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < num_bytes:
            buffer = np.empty(num_bytes, dtype=np.uint8)
            self._buffers[name] = buffer
        return buffer[:num_bytes].view(dtype).reshape(shape)
