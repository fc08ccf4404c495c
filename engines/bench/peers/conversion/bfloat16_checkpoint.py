"""A checkpoint with its FP4 weights decoded to bfloat16, for systems that read no FP4."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.architecture import module_specs
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.fp4 import bfloat16
from engines.quantize.layouts import in_file_order

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def write_bfloat16(checkpoint: Checkpoint, directory: Path) -> None:
    """Write `directory` in one go, under the names that the architectures' own files use. Raises OSError."""
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write(checkpoint, aside)
        aside.chmod(0o755)
        os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(checkpoint: Checkpoint, directory: Path) -> None:
    raw = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    raw |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    for name in _COPIED:
        if (checkpoint.directory / name).exists():
            shutil.copyfile(checkpoint.directory / name, directory / name)
    modules = {}
    for spec in module_specs(checkpoint.config):
        module = checkpoint.linear(spec.names[0])
        modules[f"{spec.names[0]}.weight"] = module
        if module.bias is not None:
            modules[f"{spec.names[0]}.bias"] = DenseTensors(module.name, "F32", module.bias)
    specs = in_file_order([TensorSpec(name, "BF16", _shape(module)) for name, module in modules.items()])
    stream_safetensors(directory / "model.safetensors", specs, _data(specs, modules), {"format": "pt"})


def _data(specs: list[TensorSpec], modules: dict[str, DenseTensors | Fp4Tensors]) -> Iterator[bytes]:
    for spec in specs:
        yield _bits(modules[spec.name]).tobytes()


def _bits(module: DenseTensors | Fp4Tensors) -> NDArray[np.uint16]:
    if isinstance(module, Fp4Tensors):
        return bfloat16.encode(module.decoded(round_to_bfloat16=False))
    if module.dtype == "BF16":
        return np.asarray(module.data)
    return bfloat16.encode(module.as_float32())


def _shape(module: DenseTensors | Fp4Tensors) -> tuple[int, ...]:
    return (module.num_rows, module.num_columns) if isinstance(module, Fp4Tensors) else module.shape
