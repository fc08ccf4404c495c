"""How each library lays out a quantised checkpoint: tensors, module names, JSON (fp4-formats 2 to 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engines.checkpoint.safetensors_writer import TensorSpec

COMPRESSED_TENSORS_VERSION = "0.19.0"  # whose files these are, key by key
MODELOPT_VERSION = "0.47.0"
METADATA = {"format": "pt"}  # what transformers asks of a safetensors file

_EXPERT = re.compile(r"(?P<layer>model\.layers\.\d+)\.[a-z_]+\.experts\.(?P<expert>\d+)\.(?P<part>\w+)")
_ROUTER = re.compile(r"(?P<layer>model\.layers\.\d+)\.(?:block_sparse_moe|mlp)\.gate")
_HUB_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_LLM_COMPRESSOR_PARTS = {hub: part for part, hub in _HUB_PARTS.items()}

# The order in which the safetensors library lays out dtypes: widest first, so that every tensor is aligned.
_DTYPE_ORDER = ("F32", "BF16", "F16", "F8_E4M3", "U8")


def output_name(module: str, layout: str) -> str:
    """The name of a source module in the output: experts as llm-compressor or the hub call them."""
    router = _ROUTER.fullmatch(module)
    if router is not None:
        return f"{router['layer']}.block_sparse_moe.gate"
    expert = _EXPERT.fullmatch(module)
    if expert is None:
        return module
    parts = _LLM_COMPRESSOR_PARTS if layout == "compressed-tensors" else _HUB_PARTS
    part = parts.get(expert["part"], expert["part"])
    return f"{expert['layer']}.block_sparse_moe.experts.{expert['expert']}.{part}"


def weight_specs(name: str, shape: tuple[int, int], format: str, layout: str) -> dict[str, TensorSpec]:
    """The tensors of one quantised weight [N, K]: roles "codes", "scales", "global_scale", "input_scale"."""
    num_rows, num_columns = shape
    codes = (num_rows, num_columns // 2)
    if layout == "modelopt":
        return {
            "codes": TensorSpec(f"{name}.weight", "U8", codes),
            "scales": TensorSpec(f"{name}.weight_scale", "F8_E4M3", (num_rows, num_columns // 16)),
            "global_scale": TensorSpec(f"{name}.weight_scale_2", "F32", ()),
            "input_scale": TensorSpec(f"{name}.input_scale", "F32", ()),
        }
    packed = TensorSpec(f"{name}.weight_packed", "U8", codes)
    if format == "mxfp4":
        scales = TensorSpec(f"{name}.weight_scale", "U8", (num_rows, num_columns // 32))
        return {"codes": packed, "scales": scales}
    return {
        "codes": packed,
        "scales": TensorSpec(f"{name}.weight_scale", "F8_E4M3", (num_rows, num_columns // 16)),
        "global_scale": TensorSpec(f"{name}.weight_global_scale", "F32", (1,)),
        "input_scale": TensorSpec(f"{name}.input_global_scale", "F32", (1,)),
    }


def in_file_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Specs as the safetensors library would lay them out: by dtype, then by name."""
    return sorted(specs, key=lambda spec: (_DTYPE_ORDER.index(spec.dtype), spec.name))


def index_json(files: Mapping[str, Sequence[TensorSpec]]) -> str:
    """model.safetensors.index.json for file names and their tensors."""
    weight_map = {spec.name: file for file, specs in files.items() for spec in specs}
    total_size = sum(spec.num_bytes for specs in files.values() for spec in specs)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


def configuration_files(
    config: Mapping[str, Any], ignore: Sequence[str], format: str, layout: str
) -> dict[str, str]:
    """config.json with its quantization_config, and modelopt's hf_quant_config.json: name -> content.

    `config` is the source's config.json; `ignore` names the unquantised linear layers in the model's order.
    """
    if layout == "compressed-tensors":
        quantized = {**config, "quantization_config": compressed_tensors_config(ignore, format)}
        return {"config.json": json.dumps(quantized, indent=2, sort_keys=True)}
    excluded = sorted({*ignore, "model.embed_tokens"})
    quantized = {**config, "quantization_config": _modelopt_section(excluded)}
    return {
        "config.json": json.dumps(quantized, indent=4),
        "hf_quant_config.json": json.dumps(_hf_quant_config(excluded), indent=4),
    }


def compressed_tensors_config(ignore: Sequence[str], format: str) -> dict[str, Any]:
    """The quantization_config that llm-compressor writes for W4A4 in `format` (fp4-formats 5.1, 5.2)."""
    format_name = f"{format}-pack-quantized"
    is_mxfp4 = format == "mxfp4"
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": 32 if is_mxfp4 else 16,
        "num_bits": 4,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
        "scale_dtype": "torch.uint8" if is_mxfp4 else "torch.float8_e4m3fn",
        "strategy": "group" if is_mxfp4 else "tensor_group",
        "symmetric": True,
        "type": "float",
        "zp_dtype": None,
    }
    activations = {
        **weights,
        "dynamic": True if is_mxfp4 else "local",
        "observer": None if is_mxfp4 else "static_minmax",
    }
    group = {
        "format": format_name,
        "input_activations": activations,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": format_name,
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": COMPRESSED_TENSORS_VERSION,
    }


def _modelopt_section(excluded: Sequence[str]) -> dict[str, Any]:
    scheme = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    group = {"input_activations": scheme, "weights": dict(scheme), "targets": ["Linear"]}
    return {
        "config_groups": {"group_0": group},
        "ignore": list(excluded),
        "quant_algo": "NVFP4",
        "producer": {"name": "modelopt", "version": MODELOPT_VERSION},
        "quant_method": "modelopt",
    }


def _hf_quant_config(excluded: Sequence[str]) -> dict[str, Any]:
    return {
        "producer": {"name": "modelopt", "version": MODELOPT_VERSION},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": 16,
            "exclude_modules": list(excluded),
        },
    }
