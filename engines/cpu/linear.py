"""Linear layers over packed weights: which product a module needs, and fusing modules that share an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu import kernels
from engines.cpu.decoder_pass import LinearLayer
from engines.cpu.weights import DenseWeight, Fp4Shard, Fp4Weight, HeadScreen, mxfp4_read_bytes
from engines.cpu.workspace import Workspace
from engines.errors import MalformedCheckpoint

Float32Array = NDArray[np.float32]


class Linear(Protocol):
    """y = x W^T (+ bias), for x float32 [M, num_columns] and y float32 [M, num_rows]."""

    @property
    def num_rows(self) -> int: ...

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None: ...


@runtime_checkable
class CompiledLinear(Protocol):
    """A linear layer that the pass in C++ can run as well, with the same bits."""

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        """Add this product to `layer`, with a bias, float32 [num_rows]; False when there is none like it."""
        ...


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """How FP4 modules are computed: see `engines.base.EngineOptions`."""

    quantize_activations: bool
    reference_numerics: bool


@dataclass(frozen=True, slots=True)
class ActivationQuantizer:
    """How the input of a W4A4 product is brought to FP4, in blocks along its columns.

    MXFP4 needs no calibration. NVFP4 uses the stored input scale, a divisor in the compressed-tensors
    convention and a multiplier in modelopt's. Frozen, so that equal quantizers mean a shareable input.
    """

    format: str
    group_size: int
    input_scale: float | None = None
    modelopt: bool = False

    def __call__(self, x: Float32Array, workspace: Workspace) -> tuple[NDArray[np.int8], Float32Array]:
        """Codes times two, int8 [M, K], and block scales, float32 [M, K / group_size], for `kernels`."""
        num_rows, num_columns = x.shape
        codes = workspace.array("activation_codes", (num_rows, num_columns), np.int8)
        scales = workspace.array("activation_scales", (num_rows, num_columns // self.group_size))
        if self.input_scale is None:
            kernels.quantize_mxfp4(x, codes, scales)
        else:
            kernels.quantize_nvfp4(x, self.input_scale, self.modelopt, codes, scales)
        return codes, scales

    @property
    def activation_scale(self) -> float:
        """What all block scales are multiplied by."""
        if self.input_scale is None or self.modelopt:
            return 1.0 if self.input_scale is None else self.input_scale
        return float(np.float32(1) / np.float32(self.input_scale))

    def multipliers(self, scales: Float32Array) -> Float32Array:
        """Block scales with the input scale in them, rounded as the library that owns the layout does."""
        if self.input_scale is None:
            return scales
        factor = np.float32(self.input_scale)
        multipliers: Float32Array = scales * factor if self.modelopt else scales / factor
        return multipliers


class DenseLinear:
    """A module that stayed in BF16, FP16 or FP32."""

    def __init__(self, tensors: Sequence[DenseTensors]) -> None:
        rows = [tensor.data for tensor in tensors]
        self.weight = DenseWeight(rows[0] if len(rows) == 1 else np.concatenate(rows))
        self.num_rows = self.weight.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        kernels.dense_linear(x, self.weight, out)

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        layer.add_dense(self.weight, bias)
        return True


class Fp4LinearW4A16:
    """FP4 weights times activations that stay as they are: `kernels.fp4_linear_w4a16`, or all in float32."""

    def __init__(self, weight: Fp4Weight, *, float32: bool) -> None:
        self._weight = weight
        self._float32 = float32
        self._product = kernels.fp4_linear_f32 if float32 else kernels.fp4_linear_w4a16
        self.num_rows = weight.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        self._product(x, self._weight, out)

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        if not self._float32:
            layer.add_fp4(self._weight, bias)
        return not self._float32


class Fp4LinearW4A4:
    """FP4 weights times FP4 activations, as exact integer block sums."""

    def __init__(self, weight: Fp4Weight, quantizer: ActivationQuantizer) -> None:
        self._weight = weight
        self._quantizer = quantizer
        self.num_rows = weight.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        codes, scales = self._quantizer(x, workspace)
        kernels.fp4_linear_w4a4(codes, scales, self._weight, out)

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        quantizer = self._quantizer
        layer.add_quantized_fp4(self._weight, quantizer.input_scale, modelopt=quantizer.modelopt, bias=bias)
        return True


class Fp4LinearRounded:
    """FP4 activations times weights rounded to bfloat16 after decoding, as compressed-tensors computes NVFP4.

    A rounded weight is no longer code x scale, so the block sums are not integers: this is the float32
    product of both decoded operands, used by `numerics=reference` only.
    """

    def __init__(self, weight: Fp4Weight, quantizer: ActivationQuantizer) -> None:
        self._weight = weight
        self._quantizer = quantizer
        self.num_rows = weight.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        codes, scales = self._quantizer(x, workspace)
        blocks = codes.reshape(*scales.shape, -1)
        decoded = workspace.array("decoded_activations", x.shape)
        halves = np.float32(0.5) * self._quantizer.multipliers(scales)
        np.multiply(blocks, halves[..., None], out=decoded.reshape(blocks.shape))
        kernels.fp4_linear_f32(decoded, self._weight, out)


class BiasedLinear:
    """Adds a bias, float32 [num_rows], to another linear layer."""

    def __init__(self, inner: Linear, bias: Float32Array) -> None:
        self._inner = inner
        self._bias = bias
        self.num_rows = inner.num_rows

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        self._inner(x, out, workspace)
        out += self._bias

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        return (
            bias is None and isinstance(self._inner, CompiledLinear) and self._inner.add_to(layer, self._bias)
        )


class StackedLinear:
    """Several linear layers of one input that cannot share a product; their outputs stand side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)
        self.num_rows = sum(part.num_rows for part in parts)

    def __call__(self, x: Float32Array, out: Float32Array, workspace: Workspace) -> None:
        start = 0
        for part in self._parts:
            part_out = workspace.array("stacked_part", (x.shape[0], part.num_rows))
            part(x, part_out, workspace)
            out[:, start : start + part.num_rows] = part_out
            start += part.num_rows

    def add_to(self, layer: LinearLayer, bias: Float32Array | None = None) -> bool:
        return bias is None and all(
            isinstance(part, CompiledLinear) and part.add_to(layer) for part in self._parts
        )


def read_bytes(module: Fp4Tensors | DenseTensors) -> int:
    """Bytes of the module's weight that a product reads: as stored, but for MXFP4 scales that are packed."""
    if isinstance(module, Fp4Tensors) and module.group_size == 32:
        return mxfp4_read_bytes(np.ascontiguousarray(module.scales))
    return module.num_bytes


def screen_bytes(head: Fp4Tensors | DenseTensors) -> int | None:
    """Bytes that greedy decoding reads in place of the head's, and memory holds beside them.

    None where the head has no screen.
    """
    if isinstance(head, Fp4Tensors) or not HeadScreen.fits(head.data.shape[1]):
        return None
    num_rows, num_columns = head.data.shape
    return HeadScreen.bytes_of(num_rows, num_columns)


def build_linear(modules: Sequence[Fp4Tensors | DenseTensors], options: LinearOptions) -> Linear:
    """One linear layer for `modules` that read the same input, rows in the given order.

    They become one product when they agree in format and input scale, which writers see to; files whose
    q, k and v disagree keep a product each (merging would scale some of them wrongly).
    """
    dense = [module for module in modules if isinstance(module, DenseTensors)]
    packed = [module for module in modules if isinstance(module, Fp4Tensors)]
    if len(dense) == len(modules) and len({module.dtype for module in dense}) == 1:
        return _with_bias(DenseLinear(dense), modules)
    if len(packed) == len(modules) and len({_fusion_key(module, options) for module in packed}) == 1:
        return _with_bias(_build_fp4(packed, options), modules)
    return StackedLinear([build_linear([module], options) for module in modules])


def _build_fp4(modules: Sequence[Fp4Tensors], options: LinearOptions) -> Linear:
    first = modules[0]
    rounded = options.reference_numerics and first.rounds_to_bfloat16
    shards = [Fp4Shard(module.packed, module.scales, module.scale_table()) for module in modules]
    quantizer = _quantizer(first, options)
    activation_scale = 1.0 if quantizer is None else quantizer.activation_scale
    weight = Fp4Weight(shards, first.group_size, rounded, activation_scale)
    if quantizer is None:
        return Fp4LinearW4A16(weight, float32=options.reference_numerics)
    return Fp4LinearRounded(weight, quantizer) if rounded else Fp4LinearW4A4(weight, quantizer)


def _quantizer(module: Fp4Tensors, options: LinearOptions) -> ActivationQuantizer | None:
    if not (options.quantize_activations and module.quantizes_activations):
        return None
    if module.format == "mxfp4":
        return ActivationQuantizer("mxfp4", module.group_size)
    if module.input_scale is None:
        raise MalformedCheckpoint(
            f"{module.name} has no input scale, which its NVFP4 activations need; "
            "serve it with --activations bf16, or calibrate the checkpoint again"
        )
    modelopt = module.convention == "modelopt"
    return ActivationQuantizer("nvfp4", module.group_size, module.input_scale, modelopt)


def _fusion_key(module: Fp4Tensors, options: LinearOptions) -> tuple[object, ...]:
    return (
        module.format,
        module.group_size,
        module.num_columns,
        module.rounds_to_bfloat16,
        _quantizer(module, options),
    )


def _with_bias(linear: Linear, modules: Sequence[Fp4Tensors | DenseTensors]) -> Linear:
    if all(module.bias is None for module in modules):
        return linear
    biases = [
        np.zeros(_num_rows(module), np.float32) if module.bias is None else module.bias for module in modules
    ]
    return BiasedLinear(linear, np.concatenate(biases))


def _num_rows(module: Fp4Tensors | DenseTensors) -> int:
    return module.num_rows if isinstance(module, Fp4Tensors) else module.shape[0]
