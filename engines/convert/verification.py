"""The proof of every conversion: both forms of a weight are decoded and compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engines.checkpoint.tensors import Fp4Tensors
from engines.fp4 import bfloat16

_CHUNK_WEIGHTS = 1 << 21  # decoded at a time, to bound memory


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """What a conversion did to one weight's numbers, each decoded by its own library's float32 formula.

    `relative_error` is the Frobenius norm of the change over that of the weight; `max_error` absolute.
    """

    equal_in_float32: bool
    equal_in_bfloat16: bool
    max_error: float
    relative_error: float


def compare_weights(before: Fp4Tensors, after: Fp4Tensors) -> WeightDifference:
    """Decode both, a few rows at a time, and compare bits (so -0.0 is not 0.0)."""
    equal = equal_rounded = True
    max_error = squared_error = 0.0
    for one, other in zip(_chunks(before), _chunks(after), strict=True):
        a, b = one.decoded(round_to_bfloat16=False), other.decoded(round_to_bfloat16=False)
        if np.array_equal(a.view(np.uint32), b.view(np.uint32)):
            continue
        equal = False
        equal_rounded = equal_rounded and np.array_equal(bfloat16.encode(a), bfloat16.encode(b))
        error = b.astype(np.float64) - a
        max_error = max(max_error, float(np.abs(error).max()))
        squared_error += float(np.square(error).sum())
    relative = float(np.sqrt(squared_error / _squared_norm(before))) if squared_error else 0.0
    return WeightDifference(equal, equal_rounded, max_error, relative)


def _squared_norm(module: Fp4Tensors) -> float:
    return sum(
        float(np.square(chunk.decoded(round_to_bfloat16=False), dtype=np.float64).sum())
        for chunk in _chunks(module)
    )


def _chunks(module: Fp4Tensors) -> Iterator[Fp4Tensors]:
    """The module cut into pieces of whole rows."""
    num_rows = max(1, _CHUNK_WEIGHTS // module.num_columns)
    for start in range(0, module.num_rows, num_rows):
        end = min(start + num_rows, module.num_rows)
        yield replace(
            module,
            num_rows=end - start,
            packed=module.packed[start:end],
            scales=module.scales[start:end],
        )
