"""What calibration learns about the input of each linear layer, and the layers that let it be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu.linear import Linear, LinearOptions, build_linear
from engines.cpu.models.loader import LinearBuilder
from engines.cpu.workspace import Workspace
from engines.quantize.errors import CalibrationError

Float32Array = NDArray[np.float32]
Observer = Callable[[Float32Array], None]


class InputStatistics:
    """Accumulates over the rows x, float32 [num_rows, K], that one linear layer reads.

    `amax`: largest magnitude. `squares` float64 [K]: sums of squares of each column.
    """

    def __init__(self, group: str, num_columns: int) -> None:
        self.group = group
        self.num_rows = 0
        self.amax = np.float32(0)
        self.squares = np.zeros(num_columns, np.float64)

    def observe(self, x: Float32Array) -> None:
        """Add rows. Raises CalibrationError when they are not finite."""
        amax = np.abs(x).max(initial=np.float32(0))
        if not np.isfinite(amax):
            raise CalibrationError(
                f"the input of {self.group} is not finite for the calibration samples; "
                "the source's weights are likely damaged"
            )
        self.num_rows += x.shape[0]
        self.amax = max(self.amax, amax)
        self.squares += np.einsum("nk,nk->k", x, x)

    @property
    def mean_squares(self) -> Float32Array | None:
        """float32 [K], None when no row was seen (an expert that no token chose)."""
        if self.num_rows == 0 or not self.squares.any():
            return None
        return (self.squares / self.num_rows).astype(np.float32)


class ObservedLinear:
    """A linear layer that shows its input before it computes."""

    def __init__(self, inner: Linear, observer: Observer) -> None:
        self._inner = inner
        self._observer = observer
        self.num_rows = inner.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        self._observer(x)
        self._inner(x, out, workspace)


def observing(observers: Mapping[str, Observer]) -> LinearBuilder:
    """A `build` for `load_layer`: the layer whose first module is called `name` shows its input to
    `observers[name]`."""

    def build(modules: Sequence[Fp4Tensors | DenseTensors], options: LinearOptions) -> Linear:
        linear = build_linear(modules, options)
        observer = observers.get(modules[0].name)
        return linear if observer is None else ObservedLinear(linear, observer)

    return build
