"""Quantising whole weights: in rows that fit the cache, on several threads, with the error that is left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import DenseTensors
from engines.fp4 import bfloat16, blocks, e2m1
from engines.quantize.error_compensation import InverseFactor, compensate
from engines.quantize.errors import WeightError
from engines.quantize.scale_search import four_over_six_scales, search_scales
from engines.quantize.weight_format import WeightGrid

Float32Array = NDArray[np.float32]
_T = TypeVar("_T")

_CHUNK_ELEMENTS = 128 * 1024
_COMPENSATED_ROWS = 8192
_ALL_BUT_SIGN = {"BF16": (np.uint16, 0x7FFF, 0x7F80), "F16": (np.uint16, 0x7FFF, 0x7C00)}
_ALL_BUT_SIGN |= {"F32": (np.uint32, 0x7FFFFFFF, 0x7F800000)}


@dataclass(frozen=True, slots=True, eq=False)
class EncodedWeight:
    """`packed` uint8 [N, K/2], `scales` uint8 [N, K/group], and what rounding cost.

    `squared_error` and `squared_norm` are sums over the weight. `output_error` and `output_norm` are those of
    the layer's output: by the Hessian where there is one, else by the mean squares of the input columns, as
    if columns were uncorrelated; None without calibration.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    global_scale: float | None
    squared_error: float
    squared_norm: float
    output_error: float | None
    output_norm: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """What a weight is fitted to. `importance` float32 [K]: mean square of each input column.

    With `factor` (GPTQ) rounding compensates errors under `hessian` [K, K], and `target` float32 [N, K] may
    take the place of the stored weight as what is approximated.
    """

    importance: Float32Array | None = None
    factor: InverseFactor | None = None
    hessian: Float32Array | None = None
    target: Float32Array | None = None


class WeightEncoder:
    """Encodes weights by one method. Holds the threads; use as a context manager."""

    def __init__(self, method: str, num_threads: int) -> None:
        self._method = method
        self._pool = ThreadPoolExecutor(max_workers=num_threads)

    def __enter__(self) -> WeightEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def amax(self, tensors: DenseTensors) -> np.float32:
        """The largest magnitude of a weight. Raises WeightError, naming the tensor, for NaN or infinity."""
        dtype, mask, first_non_finite = _ALL_BUT_SIGN[tensors.dtype]
        flat = tensors.data.reshape(-1).view(dtype)

        def largest(begin: int, end: int) -> int:
            return int((flat[begin:end] & dtype(mask)).max(initial=dtype(0)))

        bits = max(self._in_chunks(flat.size, 1, largest), default=0)
        if bits >= first_non_finite:
            raise _non_finite(tensors)
        value = np.array([bits], dtype).view(tensors.data.dtype)
        amax: np.float32 = _as_float32(value, tensors.dtype)[0]
        return amax

    def encode(self, tensors: DenseTensors, grid: WeightGrid, fitting: Fitting) -> EncodedWeight:
        """Quantise one weight [N, K] on `grid`."""
        data, target = tensors.data, fitting.target
        num_rows, num_columns = data.shape
        packed = np.empty((num_rows, num_columns // 2), np.uint8)
        scales = np.empty((num_rows, num_columns // grid.group_size), np.uint8)

        def encode_rows(begin: int, end: int) -> NDArray[np.float64]:
            weight = _as_float32(data[begin:end], tensors.dtype)
            wanted = weight if target is None else target[begin:end]
            quantized = self._round(wanted, grid, fitting.importance)
            scales[begin:end] = quantized.scales
            if fitting.factor is not None:
                codes = compensate(wanted, quantized.multipliers, fitting.factor)
                quantized = blocks.QuantizedBlocks(codes, quantized.scales, quantized.multipliers)
            packed[begin:end] = e2m1.pack(quantized.codes)
            return _errors(weight, wanted, quantized.dequantized(), fitting)

        if fitting.factor is None:
            parts = self._in_chunks(num_rows, num_columns, encode_rows)
        else:  # whole columns at a time; the matrix products use all threads themselves
            starts = range(0, num_rows, _COMPENSATED_ROWS)
            parts = [encode_rows(begin, min(begin + _COMPENSATED_ROWS, num_rows)) for begin in starts]
        sums = np.sum(parts, axis=0)
        is_calibrated = fitting.importance is not None
        return EncodedWeight(
            packed,
            scales,
            grid.global_scale,
            squared_error=float(sums[0]),
            squared_norm=float(sums[1]),
            output_error=float(sums[2]) if is_calibrated else None,
            output_norm=float(sums[3]) if is_calibrated else None,
        )

    def _round(
        self, weight: Float32Array, grid: WeightGrid, importance: Float32Array | None
    ) -> blocks.QuantizedBlocks:
        if self._method == "rtn":
            return grid.quantize(weight)
        if self._method == "four-over-six":
            return grid.encode(weight, four_over_six_scales(weight, grid, importance))
        return grid.encode(weight, search_scales(weight, grid, importance))

    def _in_chunks(self, length: int, elements_each: int, work: Callable[[int, int], _T]) -> list[_T]:
        """`work(begin, end)` over 0..length; results in order, whatever thread they came from."""
        step = max(1, _CHUNK_ELEMENTS // max(elements_each, 1))
        starts = range(0, length, step)
        return list(self._pool.map(lambda begin: work(begin, min(begin + step, length)), starts))


def _errors(
    weight: Float32Array, wanted: Float32Array, decoded: Float32Array, fitting: Fitting
) -> NDArray[np.float64]:
    """Squared error and norm of the weight, then of the output, float64 [4]."""
    difference = weight - decoded
    by_column = np.einsum("nk,nk->k", difference, difference)
    norm_by_column = np.einsum("nk,nk->k", weight, weight)
    sums = np.zeros(4, np.float64)
    sums[:2] = by_column.sum(dtype=np.float64), norm_by_column.sum(dtype=np.float64)
    if fitting.hessian is not None:
        missed = wanted - decoded
        sums[2] = np.einsum("nk,nk->", missed @ fitting.hessian, missed)
        sums[3] = np.einsum("nk,nk->", wanted @ fitting.hessian, wanted)
    elif fitting.importance is not None:
        sums[2:] = np.dot(by_column, fitting.importance), np.dot(norm_by_column, fitting.importance)
    return sums


def _as_float32(data: NDArray[Any], dtype: str) -> Float32Array:
    return bfloat16.decode(data) if dtype == "BF16" else data.astype(np.float32, copy=False)


def _non_finite(tensors: DenseTensors) -> WeightError:
    finite = np.isfinite(tensors.as_float32())
    index = [int(i) for i in np.argwhere(~finite)[0]]
    return WeightError(
        f"{tensors.name}.weight holds {int((~finite).sum())} values that are NaN or infinite, the first at "
        f"{index}; expected finite numbers: the source is damaged (an overflow while it was converted?)"
    )
