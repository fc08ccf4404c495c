"""Make a checkpoint of a true size with random weights, in the layout of a real FP4 checkpoint.

`python -m benchmarks.models.random_checkpoint 1b DIR --format mxfp4 --layout compressed-tensors`

Weights have variance 1 / num_inputs, so that activations keep their size from layer to layer; codes are
uniform random bytes, of which one block is drawn and repeated, from another place in it for every tensor:
programs that keep equal tensors once would read less than a real model has. The same shape gives the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.models.shapes import SHAPES, Shape
from engines.checkpoint.architecture import ModuleKind, module_specs
from engines.checkpoint.model_config import read_model_config
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors
from engines.fp4 import bfloat16
from engines.quantize.layouts import (
    configuration_files,
    in_file_order,
    index_json,
    output_name,
    weight_specs,
)

SHARD_BYTES = 2 << 30
_BLOCK_BYTES = 8 << 20
_TENSOR_STEP_BYTES = 1_000_003  # odd, so that as many tensors as the block has bytes begin at different ones
_CODE_RMS = math.sqrt((0.25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8)  # of uniform E2M1 codes
_E4M3_ONE = 0x38  # the eight codes from here on are 1.0 to 1.875
_E4M3_RMS = math.sqrt(sum((1 + eighth / 8) ** 2 for eighth in range(8)) / 8)
_ACTIVATION_MAXIMUM = 8.0
_LARGEST_NVFP4 = 6.0 * 448.0


def make_random_checkpoint(directory: Path, shape: Shape, format: str, layout: str) -> int:
    """Write a complete checkpoint at `directory`, which must not exist; returns its number of parameters.

    `format` is "mxfp4" or "nvfp4", `layout` "compressed-tensors" or "modelopt" (NVFP4 only).
    Raises ValueError.
    """
    if (format, layout) not in (
        ("mxfp4", "compressed-tensors"),
        ("nvfp4", "compressed-tensors"),
        ("nvfp4", "modelopt"),
    ):
        raise ValueError(f"no checkpoints of {format} in the layout of {layout} exist")
    if directory.exists():
        raise ValueError(f"{directory} exists; choose another folder or remove it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        aside.chmod(0o755)
        num_parameters = _write_files(aside, shape, format, layout)
        os.replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return num_parameters


def _write_files(directory: Path, shape: Shape, format: str, layout: str) -> int:
    (directory / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    model_config, _ = read_model_config(directory)
    specs: list[TensorSpec] = []
    ignored: list[str] = []
    num_parameters = 0
    for module in module_specs(model_config):
        name = output_name(module.names[0], layout)
        num_parameters += math.prod(module.shape)
        if module.kind is ModuleKind.LINEAR and name != "lm_head":
            specs += weight_specs(name, (module.shape[0], module.shape[1]), format, layout).values()
            continue
        specs.append(TensorSpec(f"{name}.weight", "BF16", module.shape))
        if module.kind is not ModuleKind.DENSE:
            ignored.append(name)
    for file_name, text in configuration_files(shape.config(), ignored, format, layout).items():
        (directory / file_name).write_text(text, encoding="utf-8")
    _write_shards(directory, specs, format)
    _write_tokenizer(directory, shape)
    return num_parameters


def _write_shards(directory: Path, specs: list[TensorSpec], format: str) -> None:
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if shards[-1] and sum(each.num_bytes for each in shards[-1]) + spec.num_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(spec)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = dict(zip(names if len(shards) > 1 else ["model.safetensors"], shards, strict=True))
    widths = {
        spec.name.removesuffix("_packed").removesuffix(".weight"): 2 * spec.shape[1]
        for spec in specs
        if spec.dtype == "U8" and spec.name.endswith((".weight", "_packed"))
    }
    noise = _Noise(format, widths)
    for file_name, shard in files.items():
        ordered = in_file_order(shard)
        stream_safetensors(directory / file_name, ordered, noise.tensors(ordered), {"format": "pt"})
    if len(files) > 1:
        (directory / "model.safetensors.index.json").write_text(index_json(files), encoding="utf-8")


class _Noise:
    """The bytes of every tensor; `widths` maps each FP4 module to its number of inputs."""

    def __init__(self, format: str, widths: dict[str, int]) -> None:
        self._format = format
        self._widths = widths
        self._random = np.random.Generator(np.random.PCG64(0))
        self._codes = self._random.bytes(_BLOCK_BYTES)
        self._num_coded = 0
        self._normal = self._random.standard_normal(_BLOCK_BYTES // 2, dtype=np.float32)

    def tensors(self, specs: list[TensorSpec]) -> Iterator[bytes]:
        """The bytes of `specs`, one tensor at a time."""
        for spec in specs:
            module, _, role = spec.name.rpartition(".")
            if spec.dtype == "BF16":
                yield self._dense(spec)
            elif role in ("weight", "weight_packed"):
                yield self._shifted_codes(spec.num_bytes)
            elif role == "weight_scale":
                yield self._scales(spec, self._widths[module])
            else:
                yield _scalar(role, self._widths[module])

    def _shifted_codes(self, num_bytes: int) -> bytes:
        begin = self._num_coded * _TENSOR_STEP_BYTES % len(self._codes)
        self._num_coded += 1
        return _repeated(self._codes[begin:] + self._codes[:begin], num_bytes)

    def _dense(self, spec: TensorSpec) -> bytes:
        if len(spec.shape) == 1:
            values: NDArray[np.float32] = np.ones(spec.shape, np.float32)
            return bfloat16.encode(values).tobytes()
        deviation = 1.0 if "embed_tokens" in spec.name else spec.shape[1] ** -0.5
        block = bfloat16.encode(self._normal * np.float32(deviation)).tobytes()
        return _repeated(block, spec.num_bytes)

    def _scales(self, spec: TensorSpec, width: int) -> bytes:
        if self._format == "nvfp4":
            scales = self._random.integers(_E4M3_ONE, _E4M3_ONE + 8, spec.shape, np.uint8)
        else:
            exponent = 127 + round(math.log2(width**-0.5 / _CODE_RMS))
            scales = self._random.integers(exponent - 1, exponent + 2, spec.shape, np.uint8)
        return scales.tobytes()


def _scalar(role: str, width: int) -> bytes:
    weight_scale = width**-0.5 / (_CODE_RMS * _E4M3_RMS)
    input_scale = _ACTIVATION_MAXIMUM / _LARGEST_NVFP4
    value = {
        "weight_scale_2": weight_scale,
        "input_scale": input_scale,
        "weight_global_scale": 1 / weight_scale,
        "input_global_scale": 1 / input_scale,
    }[role]
    return struct.pack("<f", value)


def _repeated(block: bytes, num_bytes: int) -> bytes:
    return (block * -(-num_bytes // len(block)))[:num_bytes]


def _write_tokenizer(directory: Path, shape: Shape) -> None:
    """A byte-level tokenizer of the shape's size; the entries past the bytes are names nobody writes."""
    entries = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [f"Ġword{number}" for number in range(shape.vocab_size - len(entries))]
    tokenizer = Tokenizer(
        models.BPE(vocab={entry: token_id for token_id, entry in enumerate(entries)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}\n{% endfor %}"
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.random_checkpoint", description=__doc__
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--format", choices=("mxfp4", "nvfp4"), default="mxfp4")
    parser.add_argument("--layout", choices=("compressed-tensors", "modelopt"), default="compressed-tensors")
    options = parser.parse_args(arguments)
    try:
        num_parameters = make_random_checkpoint(
            options.directory, SHAPES[options.shape], options.format, options.layout
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"made {options.directory}: {num_parameters:,} parameters")


if __name__ == "__main__":
    main()
