"""Quantize a BF16 master into a shipped checkpoint: `python -m examples.demo_model.export mistral SRC DST`.

Mistral becomes compressed-tensors mxfp4-pack-quantized (round to nearest, no calibration), Mixtral modelopt
NVFP4 (input scales from calibration, which needs PyTorch). lm_head, embeddings and router gates stay BF16.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.checkpoint.safetensors_writer import write_safetensors
from engines.fp4 import bfloat16, mxfp4, nvfp4
from engines.quantize.layouts import compressed_tensors_config
from examples.demo_model.checkpoint_files import SIDE_FILES, write_json

LAYOUTS = {"mistral": "compressed-tensors MXFP4", "mixtral": "modelopt NVFP4"}

_LINEAR = re.compile(r"(model\.layers\.\d+\..*(?:_proj|\.w[123]))\.weight")
_LARGEST = np.float32(2688)  # 448 * 6, the largest product of an FP8 scale and an FP4 code

Tensors = dict[str, tuple[str, NDArray[Any]]]  # name -> (safetensors dtype, raw array)


def export(kind: str, source: Path, destination: Path) -> None:
    """Write the quantized checkpoint; `destination` must not exist."""
    aside = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    master = SafetensorsFile(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if kind == "mistral":
        tensors = _mxfp4_tensors(master)
        config["quantization_config"] = compressed_tensors_config(["lm_head"], "mxfp4")
    else:
        tensors = _nvfp4_tensors(master, _input_maxima(source, kind))
        ignore = ["lm_head", "model.embed_tokens"]
        ignore += [
            f"model.layers.{layer}.block_sparse_moe.gate" for layer in range(config["num_hidden_layers"])
        ]
        config["quantization_config"], legacy = modelopt_configs(ignore)
        write_json(aside / "hf_quant_config.json", legacy)
    write_json(aside / "config.json", config)
    for name in (*SIDE_FILES, "training.json"):
        shutil.copyfile(source / name, aside / name)
    entries = sorted(tensors.items(), key=lambda entry: (-entry[1][1].itemsize, entry[0]))  # aligned that way
    write_safetensors(
        aside / "model.safetensors",
        [
            (name, dtype, array.shape, np.ascontiguousarray(array).tobytes())
            for name, (dtype, array) in entries
        ],
        {"format": "pt"},
    )
    aside.rename(destination)


def _mxfp4_tensors(master: SafetensorsFile) -> Tensors:
    tensors: Tensors = {}
    for name in master.tensors:
        linear = _LINEAR.fullmatch(name)
        if linear is None:
            tensors[name] = ("BF16", master.view(name))
        else:
            blocks = mxfp4.quantize(bfloat16.decode(master.view(name)))
            tensors[f"{linear[1]}.weight_packed"] = ("U8", blocks.packed)
            tensors[f"{linear[1]}.weight_scale"] = ("U8", blocks.scales)
    return tensors


def _nvfp4_tensors(master: SafetensorsFile, input_maxima: dict[str, float]) -> Tensors:
    weights: dict[str, NDArray[np.float32]] = {}
    tensors: Tensors = {}
    for name in master.tensors:
        linear = _LINEAR.fullmatch(name)
        if linear is None:
            tensors[name] = ("BF16", master.view(name))
        else:
            weights[linear[1]] = bfloat16.decode(master.view(name))
    weight_maxima = _shared(
        {module: float(np.abs(weight).max()) for module, weight in weights.items()}, _weight_group
    )
    inputs = _shared(input_maxima, _input_group)
    for module, weight in weights.items():
        scale = np.float32(weight_maxima[module]) / _LARGEST
        blocks = nvfp4.quantize_activations_modelopt(weight, float(scale))
        tensors[f"{module}.weight"] = ("U8", blocks.packed)
        tensors[f"{module}.weight_scale"] = ("F8_E4M3", blocks.scales)
        tensors[f"{module}.weight_scale_2"] = ("F32", np.array(scale, np.float32))
        tensors[f"{module}.input_scale"] = (
            "F32",
            np.array(np.float32(inputs[module]) / _LARGEST, np.float32),
        )
    return tensors


def _weight_group(module: str) -> str:
    """Modules computed as one matrix share the scale of the tensor: q, k, v and an expert's w1, w3."""
    return re.sub(r"\.w[13]$", ".w13", re.sub(r"\.[qkv]_proj$", ".qkv_proj", module))


def _input_group(module: str) -> str:
    """As modelopt 0.47 does, all experts of a layer share their input scales as well."""
    return re.sub(r"\.experts\.\d+\.", ".experts.", _weight_group(module))


def _shared(maxima: dict[str, float], group_of: Any) -> dict[str, float]:
    largest: dict[str, float] = defaultdict(float)
    for module, value in maxima.items():
        largest[group_of(module)] = max(largest[group_of(module)], value)
    return {module: largest[group_of(module)] for module in maxima}


def _input_maxima(source: Path, kind: str) -> dict[str, float]:
    from examples.demo_model.calibration import input_maxima  # PyTorch is needed for NVFP4 only

    return input_maxima(source, kind)


def modelopt_configs(ignore: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The quantization_config of config.json and the contents of hf_quant_config.json."""
    producer = {"name": "nybble", "version": "0.1.0"}
    four_bits = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": nvfp4.GROUP_SIZE}
    group = {"input_activations": four_bits, "weights": four_bits, "targets": ["Linear"]}
    section = {
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "quant_algo": "NVFP4",
        "producer": producer,
        "quant_method": "modelopt",
    }
    quantization = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": nvfp4.GROUP_SIZE,
        "exclude_modules": ignore,
    }
    return section, {"producer": producer, "quantization": quantization}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.export", description=__doc__)
    parser.add_argument("kind", choices=sorted(LAYOUTS))
    parser.add_argument("source", type=Path, help="the BF16 master that train.py wrote")
    parser.add_argument("destination", type=Path, help="where to write the FP4 checkpoint; must not exist")
    options = parser.parse_args(arguments)
    if options.destination.exists():
        parser.exit(1, f"error: {options.destination} exists; choose another folder or remove it first\n")
    export(options.kind, options.source, options.destination)
    print(f"wrote {LAYOUTS[options.kind]} to {options.destination}")


if __name__ == "__main__":
    main()
