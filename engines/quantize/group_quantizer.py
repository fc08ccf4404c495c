"""Quantises modules that share an input, writes them, and says what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.fp4 import nvfp4
from engines.quantize.error_compensation import InverseFactor, factorize, shifted_target
from engines.quantize.options import QuantizeOptions
from engines.quantize.output_files import OutputFiles
from engines.quantize.plan import PlannedModule
from engines.quantize.report import ModuleError
from engines.quantize.weight_encoder import EncodedWeight, Fitting, WeightEncoder
from engines.quantize.weight_format import WeightGrid

Float32Array = NDArray[np.float32]

_LARGEST = np.float32(2688.0)  # the largest E2M1 code times the largest E4M3 scale


@dataclass(frozen=True, slots=True, eq=False)
class GroupInput:
    """What calibration knows of the input [num_rows, K] that the modules of a group share.

    `amax` gives the static input scale; `mean_squares` float32 [K] weigh errors by column; `hessian` and
    `shift` float32 [K, K] are those of `PairedStatistics`, for error compensation. None: not known.
    """

    amax: np.float32 | None = None
    mean_squares: Float32Array | None = None
    hessian: Float32Array | None = None
    shift: Float32Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedModule:
    """A module as an engine will read it, under its name in the source, and its error."""

    tensors: Fp4Tensors
    error: ModuleError


class GroupQuantizer:
    """`bfloat16_model`: whether the library would compute input scales in bfloat16."""

    def __init__(
        self, options: QuantizeOptions, encoder: WeightEncoder, output: OutputFiles, *, bfloat16_model: bool
    ) -> None:
        self._options = options
        self._encoder = encoder
        self._output = output
        self._bfloat16_model = bfloat16_model

    def quantize(self, modules: Sequence[PlannedModule], seen: GroupInput) -> list[QuantizedModule]:
        """Quantise and write `modules` under one global scale, as servers that fuse them need."""
        options = self._options
        largest = max(self._encoder.amax(module.source) for module in modules)
        grid = WeightGrid.for_group(
            options.format,
            options.layout,
            largest,
            bfloat16_model=modules[0].source.dtype == "BF16",
            headroom=options.method != "rtn",
        )
        factor = None if seen.hessian is None else factorize(seen.hessian)
        input_scale = None if options.format == "mxfp4" or seen.amax is None else self._input_scale(seen.amax)
        quantized = []
        for module in modules:
            fitting = _fitting(module.source, seen, factor)
            encoded = self._encoder.encode(module.source, grid, fitting)
            self._write(module, encoded, input_scale)
            tensors = self._as_tensors(module.source, encoded, input_scale)
            quantized.append(QuantizedModule(tensors, _module_error(module, encoded, seen.amax)))
        return quantized

    def _input_scale(self, amax: np.float32) -> float:
        """The static scale as the layout stores it: a divisor or a multiplier."""
        if self._options.layout == "compressed-tensors":
            observed = np.array([amax], np.float32)
            return nvfp4.global_scale_compressed_tensors(observed, bfloat16_model=self._bfloat16_model)
        return float(np.float32(amax / _LARGEST))

    def _write(self, module: PlannedModule, encoded: EncodedWeight, input_scale: float | None) -> None:
        self._output.write(module.specs["codes"], encoded.packed)
        self._output.write(module.specs["scales"], encoded.scales)
        for role, value in (("global_scale", encoded.global_scale), ("input_scale", input_scale)):
            if value is not None:
                self._output.write(module.specs[role], np.array([value], "<f4"))

    def _as_tensors(
        self, source: DenseTensors, encoded: EncodedWeight, input_scale: float | None
    ) -> Fp4Tensors:
        num_rows, num_columns = source.shape
        return Fp4Tensors(
            name=source.name,
            format=self._options.format,
            convention=self._options.layout,
            num_rows=num_rows,
            num_columns=num_columns,
            group_size=self._options.group_size,
            packed=encoded.packed,
            scales=encoded.scales,
            global_scale=encoded.global_scale,
            input_scale=input_scale,
            quantizes_activations=True,
            bias=source.bias,
        )


def _fitting(source: DenseTensors, seen: GroupInput, factor: InverseFactor | None) -> Fitting:
    target = None
    if factor is not None and seen.shift is not None:
        target = shifted_target(source.as_float32(), seen.shift, factor)
    return Fitting(seen.mean_squares, factor, seen.hessian, target)


def _module_error(module: PlannedModule, encoded: EncodedWeight, amax: np.float32 | None) -> ModuleError:
    output_error = None
    if encoded.output_error is not None and encoded.output_norm:
        output_error = encoded.output_error / encoded.output_norm
    return ModuleError(
        name=module.name,
        num_parameters=module.num_parameters,
        weight_error=encoded.squared_error / encoded.squared_norm if encoded.squared_norm else 0.0,
        output_error=output_error,
        input_amax=None if amax is None else float(amax),
    )
