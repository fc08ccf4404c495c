"""From a Hugging Face NVFP4 directory (modelopt) to TensorRT-LLM's checkpoint, final dialect, without a GPU.

Codes and block scales are copied: sliced per rank, joined, and the scales stored once plain and once
swizzled; the only arithmetic is a maximum and one float32 product. Source: the layout read in TensorRT-LLM
1.0 to 1.2.x's loader (docs/tensorrt-llm-build.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.fp4 import bfloat16
from engines.trtllm.checkpoint_config import checkpoint_config
from engines.trtllm.checkpoint_layout import (
    TargetDense,
    TargetLinear,
    check_split,
    layer_name,
    outer_tensors,
    target_layers,
)
from engines.trtllm.errors import BuildRefused
from engines.trtllm.kv_scales import kv_cache_scale
from engines.trtllm.scale_fusion import FusedScale, fuse_scales
from engines.trtllm.swizzle import swizzle

Progress = Callable[[str, int, int], None]
"""Called with the phase, what is done of it and its total, in bytes."""

_METADATA = {"format": "pt"}
_WIDEST_FIRST = ("F32", "BF16", "F8_E4M3", "U8")  # keeps every tensor aligned


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """One tensor of one rank's file; `make` gives its array when its turn comes."""

    spec: TensorSpec
    make: Callable[[], NDArray[Any]]


def rank_file(rank: int) -> str:
    """The name of one rank's weights."""
    return f"rank{rank}.safetensors"


def write_checkpoint(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    tensor_parallel: int,
    kv_cache_dtype: str,
    progress: Progress = lambda *_: None,
) -> None:
    """Write config.json and one file of weights per rank into `directory`, which must exist.

    Memory: one tensor at a time (the largest: all experts' fc of one layer on one rank). Raises BuildRefused
    for what the format cannot carry, before anything is written, and OSError.
    """
    check_ranks(checkpoint, tensor_parallel)
    plans = [
        list(_rank_tensors(checkpoint, rank, tensor_parallel, kv_cache_dtype))
        for rank in range(tensor_parallel)
    ]
    exclude = [name for layer in target_layers(checkpoint) for name in layer.exclude]
    config = checkpoint_config(
        checkpoint.config, tensor_parallel=tensor_parallel, kv_cache_dtype=kv_cache_dtype, exclude=exclude
    )
    total = sum(tensor.spec.num_bytes for plan in plans for tensor in plan)
    done = 0

    def data(tensors: list[_Tensor]) -> Iterator[memoryview]:
        nonlocal done
        for tensor in tensors:
            yield np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data
            done += tensor.spec.num_bytes
            checkpoint.tensors.release_pages()
            progress("checkpoint", done, total)

    for rank, plan in enumerate(plans):
        ordered = sorted(plan, key=lambda tensor: _WIDEST_FIRST.index(tensor.spec.dtype))
        specs = [tensor.spec for tensor in ordered]
        stream_safetensors(directory / rank_file(rank), specs, data(ordered), _METADATA)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def checkpoint_num_bytes(checkpoint: Checkpoint, tensor_parallel: int, kv_cache_dtype: str) -> int:
    """Bytes of one rank's tensors. Raises BuildRefused as `write_checkpoint` does."""
    check_ranks(checkpoint, tensor_parallel)
    tensors = _rank_tensors(checkpoint, 0, tensor_parallel, kv_cache_dtype)
    return sum(tensor.spec.num_bytes for tensor in tensors)


def check_ranks(checkpoint: Checkpoint, tensor_parallel: int, *, converted_later: bool = False) -> None:
    """Refuse a model or a split that the format cannot carry. Raises BuildRefused.

    With `converted_later` the checkpoint is in another FP4 layout yet, which is no fault.
    """
    check_heads(checkpoint, tensor_parallel)
    for layer in target_layers(checkpoint, converted_later=converted_later):
        for linear in layer.linears:
            check_split(linear, tensor_parallel)
        for dense in layer.dense:
            _require_bfloat16(dense.module)
    for dense in outer_tensors(checkpoint):
        _require_bfloat16(dense.module)


def check_heads(checkpoint: Checkpoint, tensor_parallel: int) -> None:
    """Refuse a number of ranks that cannot share the heads evenly. Raises BuildRefused."""
    config = checkpoint.config
    if tensor_parallel < 1 or config.num_kv_heads % tensor_parallel or config.num_heads % tensor_parallel:
        raise BuildRefused(
            f"--tensor-parallel {tensor_parallel}: {config.num_heads} heads and {config.num_kv_heads} KV "
            "heads cannot be shared evenly; expected a divisor of both"
        )


def _require_bfloat16(module: DenseTensors) -> None:
    if module.dtype != "BF16":
        raise BuildRefused(
            f"{module.name}: is stored as {module.dtype}; TensorRT-LLM takes another type without a word and "
            "fails later, so expected BF16"
        )


def _rank_tensors(
    checkpoint: Checkpoint, rank: int, tensor_parallel: int, kv_cache_dtype: str
) -> Iterator[_Tensor]:
    for dense in outer_tensors(checkpoint):
        yield _dense_tensor(dense, rank, tensor_parallel)
    for index, layer in enumerate(target_layers(checkpoint)):
        for dense in layer.dense:
            yield _dense_tensor(dense, rank, tensor_parallel)
        for linear in layer.linears:
            yield from _linear_tensors(linear, rank, tensor_parallel)
        if kv_cache_dtype == "fp8":
            yield from _kv_cache_tensors(checkpoint, index)


def _kv_cache_tensors(checkpoint: Checkpoint, layer: int) -> Iterator[_Tensor]:
    scale = kv_cache_scale(checkpoint, layer)
    for name, value in (
        ("kv_cache_scaling_factor", scale),
        ("kv_cache_rcp_scaling_factor", np.float32(1) / scale),
    ):
        yield _factor(f"{layer_name(layer)}.attention.{name}", np.array([value], np.float32))


def _dense_tensor(dense: TargetDense, rank: int, tensor_parallel: int) -> _Tensor:
    module = dense.module
    if dense.to_float32:
        spec = TensorSpec(dense.name, "F32", module.shape)
        return _Tensor(spec, lambda: bfloat16.decode(module.data))
    if not dense.split_rows:
        return _Tensor(TensorSpec(dense.name, "BF16", module.shape), lambda: module.data)
    num_rows, num_columns = module.shape
    share = -(-num_rows // tensor_parallel)

    def rows() -> NDArray[np.uint16]:
        part = module.data[rank * share : (rank + 1) * share]
        padded = np.zeros((share, num_columns), np.uint16)
        padded[: len(part)] = part
        return padded

    return _Tensor(TensorSpec(dense.name, "BF16", (share, num_columns)), rows)


def _linear_tensors(linear: TargetLinear, rank: int, tensor_parallel: int) -> Iterator[_Tensor]:
    num_rows, num_columns = linear.shape(tensor_parallel)
    leading = (len(linear.experts),) if linear.is_moe else ()
    if not linear.is_fp4:
        spec = TensorSpec(f"{linear.name}.weight", "BF16", (*leading, num_rows, num_columns))
        yield _Tensor(spec, lambda: _stacked(linear, rank, tensor_parallel, _dense_data))
        return
    scales_shape = (*leading, num_rows, num_columns // 16)
    fused = [fuse_scales(_as_fp4(expert)) for expert in linear.experts]

    def plain_scales() -> NDArray[np.uint8]:
        per_expert = [
            np.concatenate(
                [
                    one.stored_scales(index, _share(module.scales, linear.axis, rank, tensor_parallel))
                    for index, module in enumerate(_as_fp4(expert))
                ]
            )
            for one, expert in zip(fused, linear.experts, strict=True)
        ]
        return np.stack(per_expert) if linear.is_moe else per_expert[0]

    def swizzled_scales() -> NDArray[np.uint8]:
        plain = plain_scales()
        return np.stack([swizzle(one) for one in plain]) if linear.is_moe else swizzle(plain)

    codes = TensorSpec(f"{linear.name}.weight", "U8", (*leading, num_rows, num_columns // 2))
    yield _Tensor(codes, lambda: _stacked(linear, rank, tensor_parallel, _packed_data))
    name = f"{linear.name}.weights_block_scaling_factor"
    yield _Tensor(TensorSpec(name, "F8_E4M3", scales_shape), plain_scales)
    yield _Tensor(TensorSpec(f"{name}_interleaved", "F8_E4M3", scales_shape), swizzled_scales)
    yield from _factors(linear, fused)


def _factors(linear: TargetLinear, fused: list[FusedScale]) -> Iterator[_Tensor]:
    """Activation factor, alpha, and for a dense layer the weight's global factor; all multipliers."""
    sources = _as_fp4(linear.sources)
    activation = max(np.float32(module.input_scale) for module in sources if module.input_scale is not None)
    alpha = np.array([one.global_scale * activation for one in fused], np.float32)
    with np.errstate(over="ignore"):
        usable = np.isfinite(alpha).all() and (alpha > 0).all()
    if not usable:
        raise BuildRefused(f"{linear.name}: input scale times weight scale is {alpha}; expected above 0")
    if not linear.is_moe:
        yield _factor(f"{linear.name}.weights_global_scaling_factor", np.array([fused[0].global_scale]))
    yield _factor(f"{linear.name}.activation_global_scaling_factor", np.array([activation]))
    yield _factor(f"{linear.name}.alpha", alpha)


def _factor(name: str, values: NDArray[np.float32]) -> _Tensor:
    return _Tensor(TensorSpec(name, "F32", values.shape), lambda: values.astype(np.float32))


def _stacked(
    linear: TargetLinear, rank: int, tensor_parallel: int, data: Callable[[Any], NDArray[Any]]
) -> NDArray[Any]:
    """Each source's share of `rank`, joined by rows, experts stacked."""
    per_expert = [
        np.concatenate([_share(data(module), linear.axis, rank, tensor_parallel) for module in expert])
        for expert in linear.experts
    ]
    return np.stack(per_expert) if linear.is_moe else per_expert[0]


def _packed_data(module: Fp4Tensors) -> NDArray[np.uint8]:
    return module.packed


def _dense_data(module: DenseTensors) -> NDArray[Any]:
    _require_bfloat16(module)
    return module.data


def _share(array: NDArray[Any], axis: int, rank: int, tensor_parallel: int) -> NDArray[Any]:
    size = array.shape[axis] // tensor_parallel
    part = slice(rank * size, (rank + 1) * size)
    return array[part] if axis == 0 else array[:, part]


def _as_fp4(modules: tuple[Fp4Tensors | DenseTensors, ...]) -> tuple[Fp4Tensors, ...]:
    return tuple(module for module in modules if isinstance(module, Fp4Tensors))
