"""As much of torch as a float32 vector needs."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray


class Tensor:
    """Shares no memory with the array it was made from, unlike the real one; nobody should rely on that."""

    def __init__(self, array: NDArray[np.generic]) -> None:
        self.array = array.copy()
        self.dtype = str(array.dtype)
        self.shape = array.shape

    def float(self) -> Tensor:
        return Tensor(self.array.astype(np.float32))

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> NDArray[np.generic]:
        return self.array


class OutOfMemoryError(RuntimeError):
    """torch.OutOfMemoryError."""


def from_numpy(array: NDArray[np.generic]) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    return Tensor(array)


def torch_module() -> ModuleType:
    module = ModuleType("torch")
    module.Tensor = Tensor
    module.OutOfMemoryError = OutOfMemoryError
    module.from_numpy = from_numpy
    return module
