"""Takes one module out of the files: decides by its tensors what it is, and checks every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.architecture import ModuleKind, ModuleSpec
from engines.checkpoint.quantization import GROUP_SIZES, Quantization, QuantizationGroup
from engines.checkpoint.safetensors_file import TensorInfo
from engines.checkpoint.shards import TensorDirectory
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint
from engines.fp4 import e4m3, e8m0

_DENSE_DTYPES = ("BF16", "F16", "F32")
_FINITE_CHECK_LIMIT_BYTES = 8 * 1024 * 1024  # larger dense tensors are not read at opening

# Tensors of a module that do not change what a weight is: scales of a quantised KV cache.
_IGNORABLE_SUFFIXES = frozenset(
    {"k_scale", "v_scale", "q_scale", "prob_scale", "output_scale", "weight_shape"}
)
_DENSE_SUFFIXES = frozenset({"weight", "bias"})
_CT_SUFFIXES = frozenset(
    {"weight_packed", "weight_scale", "weight_global_scale", "input_global_scale", "bias"}
)
_MODELOPT_SUFFIXES = frozenset({"weight", "weight_scale", "weight_scale_2", "input_scale", "bias"})


class ModuleReader:
    """Reads modules of one directory under one quantisation config. Raises CheckpointError."""

    def __init__(self, tensors: TensorDirectory, quantization: Quantization | None) -> None:
        self._tensors = tensors
        self._quantization = quantization
        self._suffixes: dict[str, set[str]] = {}
        for name in tensors:
            module, _, suffix = name.rpartition(".")
            self._suffixes.setdefault(module, set()).add(suffix)

    def read(self, spec: ModuleSpec) -> Fp4Tensors | DenseTensors:
        """The module `spec` describes, checked against it."""
        name = self._spelling(spec)
        suffixes = self._suffixes[name]
        packed_by = self._packed_by(name, suffixes)
        if packed_by is not None and spec.kind is not ModuleKind.LINEAR:
            raise UnsupportedCheckpoint(
                f"{self._where(name)}: a quantised {spec.kind.value} is not supported"
            )
        group = self._quantization.group_of(name) if self._quantization is not None else None
        if packed_by is None:
            self._check_suffixes(name, suffixes, _DENSE_SUFFIXES)
            if group is not None and spec.kind is ModuleKind.LINEAR:
                raise MalformedCheckpoint(
                    f"{self._where(name)}: is stored unquantised although the quantisation config targets it "
                    "and does not ignore it; add it to `ignore` or store it quantised"
                )
            return self._dense(name, spec)
        if group is None:
            raise MalformedCheckpoint(
                f"{self._where(name)}: is stored in FP4 although the quantisation config does not quantise "
                "it (no quantisation config, no group targets it, or it is ignored)"
            )
        if packed_by == "modelopt":
            self._check_suffixes(name, suffixes, _MODELOPT_SUFFIXES)
        else:
            self._check_suffixes(name, suffixes, _CT_SUFFIXES)
        return self._fp4(name, spec, group, packed_by)

    def _spelling(self, spec: ModuleSpec) -> str:
        found = [name for name in spec.names if {"weight", "weight_packed"} & self._suffixes.get(name, set())]
        if len(found) == 1:
            return found[0]
        if found:
            raise MalformedCheckpoint(f"{self._tensors.directory}: holds the same module twice: {found}")
        for name in spec.names:
            fused = name.rpartition(".experts.")[0] + ".experts"
            if ".experts." in name and {"gate_up_proj", "down_proj"} & self._suffixes.get(fused, set()):
                raise UnsupportedCheckpoint(
                    f"{self._where(fused)}: experts fused into 3-D tensors are not supported; expected one "
                    "tensor per expert, such as model.layers.0.block_sparse_moe.experts.0.w1.weight_packed"
                )
        raise MalformedCheckpoint(
            f"{self._tensors.directory}: the module {' or '.join(spec.names)} is absent; config.json "
            f"asks for it, with a weight of shape {list(spec.shape)} (is the download complete?)"
        )

    def _packed_by(self, name: str, suffixes: set[str]) -> str | None:
        if "weight_packed" in suffixes:
            if "weight" in suffixes:
                raise MalformedCheckpoint(f"{self._where(name)}: has both weight and weight_packed")
            return "compressed-tensors"
        return "modelopt" if self._tensors[f"{name}.weight"].dtype == "U8" else None

    def _check_suffixes(self, name: str, suffixes: set[str], known: frozenset[str]) -> None:
        unknown = sorted(suffixes - known - _IGNORABLE_SUFFIXES)
        if unknown:
            raise UnsupportedCheckpoint(
                f"{self._where(name)}: has tensors this reader does not know: {unknown}; "
                f"expected {sorted(known)}"
            )

    def _dense(self, name: str, spec: ModuleSpec) -> DenseTensors:
        info = self._require(f"{name}.weight", _DENSE_DTYPES, [spec.shape])
        data = self._tensors.view(info.name)
        dense = DenseTensors(name, info.dtype, data, self._bias(name, spec))
        if info.num_bytes <= _FINITE_CHECK_LIMIT_BYTES:
            _require_finite(info, dense.as_float32())
        return dense

    def _bias(self, name: str, spec: ModuleSpec) -> NDArray[np.float32] | None:
        if f"{name}.bias" not in self._tensors:
            if spec.has_bias:
                raise MalformedCheckpoint(
                    f"{self._where(name)}: has no bias although config.json says it has"
                )
            return None
        if not spec.has_bias:
            raise MalformedCheckpoint(
                f"{self._where(name)}: has a bias although config.json says it has none"
            )
        info = self._require(f"{name}.bias", _DENSE_DTYPES, [spec.shape[:1]])
        bias = DenseTensors(info.name, info.dtype, self._tensors.view(info.name)).as_float32()
        _require_finite(info, bias)
        return bias

    def _fp4(self, name: str, spec: ModuleSpec, group: QuantizationGroup, packed_by: str) -> Fp4Tensors:
        assert self._quantization is not None
        convention = self._quantization.convention
        if packed_by != convention:
            raise MalformedCheckpoint(
                f"{self._where(name)}: is stored as {packed_by} does it; the quantisation config "
                f"says {convention}"
            )
        num_rows, num_columns = spec.shape
        group_size = GROUP_SIZES[group.format]
        if num_columns % group_size:
            raise MalformedCheckpoint(
                f"{self._where(name)}: has {num_columns} columns; {group.format} needs "
                f"a multiple of {group_size}"
            )
        is_modelopt = convention == "modelopt"
        weight = f"{name}.weight" if is_modelopt else f"{name}.weight_packed"
        packed = self._require(weight, ("U8",), [(num_rows, num_columns // 2)])
        scale_dtypes = ("U8", "F8_E8M0") if group.format == "mxfp4" else ("F8_E4M3",)
        scales_info = self._require(
            f"{name}.weight_scale", scale_dtypes, [(num_rows, num_columns // group_size)]
        )
        scales = self._tensors.view(scales_info.name)
        _require_scales(scales_info, scales, group.format)
        global_name = f"{name}.weight_scale_2" if is_modelopt else f"{name}.weight_global_scale"
        input_name = f"{name}.input_scale" if is_modelopt else f"{name}.input_global_scale"
        if group.format == "mxfp4":
            self._refuse(name, group.format, (global_name, input_name))
        return Fp4Tensors(
            name=name,
            format=group.format,
            convention=convention,
            num_rows=num_rows,
            num_columns=num_columns,
            group_size=group_size,
            packed=self._tensors.view(packed.name),
            scales=scales,
            global_scale=None if group.format == "mxfp4" else self._scalar(global_name, is_modelopt),
            input_scale=self._scalar(input_name, is_modelopt) if input_name in self._tensors else None,
            quantizes_activations=group.quantizes_activations,
            bias=self._bias(name, spec),
        )

    def _refuse(self, name: str, format: str, tensors: Sequence[str]) -> None:
        for tensor in tensors:
            if tensor in self._tensors:
                raise MalformedCheckpoint(
                    f"{self._where(name)}: is said to be {format}, which has no {tensor}"
                )

    def _scalar(self, name: str, multiplies: bool) -> float:
        """One finite positive float32, stored as [1] or []; block scales under it must stay finite."""
        info = self._require(name, ("F32",), [(1,), ()])
        value = np.float32(self._tensors.view(name).reshape(()))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            largest = e4m3.MAX * value if multiplies else e4m3.MAX / value
        if not (np.isfinite(value) and np.isfinite(largest) and largest > 0):
            raise MalformedCheckpoint(
                f"{info}: is {value}; expected a finite scale above 0 that keeps weights finite"
            )
        return float(value)

    def _require(self, name: str, dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> TensorInfo:
        info = self._tensors.get(name)
        if info is None:
            raise MalformedCheckpoint(
                f"{self._tensors.directory}: tensor {name!r} is absent; its module needs it"
            )
        if info.dtype not in dtypes or info.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise MalformedCheckpoint(
                f"{info}: is {info.dtype} {list(info.shape)}; expected {' or '.join(dtypes)} {expected}"
            )
        return info

    def _where(self, name: str) -> str:
        return f"{self._tensors.directory}: module {name!r}"


def _require_finite(info: TensorInfo, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise MalformedCheckpoint(f"{info}: holds NaN or infinity; expected finite numbers")


_LARGEST_E4M3_SCALE = 0x7E  # 448; above it lie NaN and the negative numbers


def _require_scales(info: TensorInfo, scales: NDArray[np.uint8], format: str) -> None:
    """One pass over the bytes: E8M0 has a NaN at the top, E4M3 everything that is no scale."""
    largest = int(scales.max())
    if largest <= (e8m0.NAN - 1 if format == "mxfp4" else _LARGEST_E4M3_SCALE):
        return
    if format == "mxfp4" or e4m3.has_nan(scales):
        raise MalformedCheckpoint(
            f"{info}: holds a NaN scale; expected numbers (quantised from NaN weights?)"
        )
    raise MalformedCheckpoint(f"{info}: holds a negative scale, byte 0x{largest:02x}; expected 0 or more")
