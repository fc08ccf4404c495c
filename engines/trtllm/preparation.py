"""Putting an engine directory together: linked weights, configuration, and TensorRT's own files checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.quantization import HF_QUANT_CONFIG
from engines.checkpoint.shards import INDEX_FILE
from engines.convert.destination import carry_files, write_text
from engines.errors import MalformedCheckpoint
from engines.trtllm.errors import BuildError
from engines.trtllm.manifest import BuildOptions


def assemble_checkpoint(source: Path, target: Path) -> None:
    """The Hugging Face directory `source` again in `target`, weights as links where the file system can.

    hf_quant_config.json is made from config.json when it is missing: TensorRT-LLM looks there first, and some
    releases nowhere else.
    """
    checkpoint = Checkpoint.open(source)
    for path in checkpoint.tensors.paths:
        _link_or_copy(path, target / path.name)
    for name in ("config.json", INDEX_FILE, HF_QUANT_CONFIG):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    carry_files(source, target)
    if not (target / HF_QUANT_CONFIG).exists():
        write_text(target / HF_QUANT_CONFIG, json.dumps(_hf_quant_config(source), indent=4))


def assemble_engine(checkpoint: Checkpoint, built: Path, target: Path) -> None:
    """trtllm-build's output, moved, and what the service needs of the source beside it.

    config.json is TensorRT-LLM's here, so generation_config.json names every end-of-sequence id.
    """
    for path in sorted(built.iterdir()):
        shutil.move(str(path), str(target / path.name))
    source = checkpoint.directory
    carry_files(source, target)
    generation = target / "generation_config.json"
    document = read_json_object(generation) if generation.exists() else {}
    document["eos_token_id"] = sorted(checkpoint.config.eos_token_ids)
    write_text(generation, json.dumps(document, indent=2) + "\n")


def check_engine(directory: Path, version: str, options: BuildOptions) -> None:
    """Compare what trtllm-build left with what was asked. Raises BuildError."""
    for rank in range(options.tensor_parallel):
        path = directory / f"rank{rank}.engine"
        if not path.is_file() or path.stat().st_size == 0:
            raise BuildError(f"{path}: trtllm-build ended well but did not write it; see the build log")
    try:
        config = read_json_object(directory / "config.json")
    except MalformedCheckpoint as error:
        raise BuildError(f"trtllm-build ended well, but {error}") from error
    expected: dict[str, Any] = {
        "version": version,
        "pretrained_config.mapping.world_size": options.tensor_parallel,
        "pretrained_config.quantization.quant_algo": "NVFP4",
        "build_config.max_batch_size": options.max_batch_size,
        "build_config.max_seq_len": options.max_seq_len,
        "build_config.max_num_tokens": options.max_num_tokens,
    }
    for name, value in expected.items():
        got = _look_up(config, name)
        if got != value:
            raise BuildError(
                f"{directory / 'config.json'}: {name} is {got!r:.100}; the build asked for {value!r}"
            )


def _look_up(document: Mapping[str, Any], name: str) -> Any:
    value: Any = document
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link to the file itself (not to a cache's symbolic link), or a copy across file systems."""
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _hf_quant_config(source: Path) -> dict[str, Any]:
    section = read_json_object(source / "config.json")["quantization_config"]
    excluded = section.get("exclude_modules") or section.get("ignore") or []
    kv_cache = section.get("kv_cache_quant_algo")
    if kv_cache is None and isinstance(section.get("kv_cache_scheme"), dict):
        kv_cache = "FP8"  # the only scheme the reader lets through
    return {
        "producer": section.get("producer") or {"name": "modelopt"},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": kv_cache,
            "group_size": 16,
            "exclude_modules": list(excluded),
        },
    }
