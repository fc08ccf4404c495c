"""Checkpoints made to do harm, or merely broken: always a CheckpointError with a clear message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint
from tests.support.checkpoint_edits import Tensors, copy_checkpoint, edit_json, edit_tensors
from tests.support.random_checkpoint import RandomCheckpoint

UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_is_not_opened(golden: Path, tmp_path: Path, name: str) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(MalformedCheckpoint, match="is not a regular file"):
        Checkpoint.open(copy)


def test_a_config_too_large_is_not_read(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    with (copy / "config.json").open("ab") as file:
        file.truncate(1 << 34)
    with pytest.raises(MalformedCheckpoint, match="expected at most 16777216"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("length", [0, 7, 100, 5_000, 100_000, 325_543])
def test_truncated_at_any_place(golden: Path, tmp_path: Path, length: int) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    os.truncate(copy / "model.safetensors", length)
    with pytest.raises(MalformedCheckpoint, match="truncated"):
        Checkpoint.open(copy)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return RandomCheckpoint(num_shards=2, num_layers=1).write(tmp_path / "model")


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../model-00001-of-00002.safetensors", "expected the plain name"),
        ("/etc/passwd", "expected the plain name"),
        ("..", "expected the plain name"),
        ("sub/x.safetensors", "expected the plain name"),
        ("..\\x.safetensors", "expected the plain name"),
        ("x\x00.safetensors", "expected the plain name"),
        ("\ud800.safetensors", "expected the plain name"),
        ("x" * 300 + ".safetensors", "expected the plain name"),
        (7, "expected the plain name"),
        (None, "expected the plain name"),
        ("absent.safetensors", "absent.safetensors: cannot be read"),
        ("model-00002-of-00002.safetensors", "is listed in model-00002-of-00002.safetensors but absent"),
    ],
)
def test_index_naming_a_wrong_file(sharded: Path, shard: Any, message: str) -> None:
    name = "model.embed_tokens.weight"  # in the first shard
    edit_json(
        sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({name: shard})
    )
    with pytest.raises(MalformedCheckpoint, match=message):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    edit_json(sharded / "model.safetensors.index.json", lambda index: index.update(weight_map=weight_map))
    with pytest.raises(MalformedCheckpoint, match="has no weight_map"):
        Checkpoint.open(sharded)


def test_missing_shard_and_unlisted_tensor(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    edit_json(index, lambda document: document["weight_map"].pop("model.norm.weight") and None)
    with pytest.raises(MalformedCheckpoint, match=r"the module model\.norm is absent"):
        Checkpoint.open(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MalformedCheckpoint, match=r"00002\.safetensors: cannot be read"):
        Checkpoint.open(sharded)


def test_directories_without_weights(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(MalformedCheckpoint, match="has neither"):
        Checkpoint.open(copy)
    (copy / "model-Q4.gguf").touch()
    with pytest.raises(UnsupportedCheckpoint, match=r"but model-Q4\.gguf"):
        Checkpoint.open(copy)
    with pytest.raises(MalformedCheckpoint, match="is no directory"):
        Checkpoint.open(copy / "config.json")


def replace(name: str, dtype: str, array: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: (dtype, array)})


def poke(name: str, value: int) -> Callable[[Tensors], None]:
    """Overwrite the last element of a tensor with raw bits."""

    def edit(tensors: Tensors) -> None:
        tensors[name][1].reshape(-1)[-1] = value

    return edit


SCALE = f"{UP}.weight_scale"
GLOBAL = f"{UP}.weight_global_scale"
INPUT = f"{UP}.input_global_scale"
NVFP4_EDITS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "packed missing": (
        lambda t: t.pop(f"{UP}.weight_packed") and None,
        "module model.layers.0.mlp.up_proj is absent",
    ),
    "scales missing": (lambda t: t.pop(SCALE) and None, f"tensor '{SCALE}' is absent"),
    "global scale missing": (lambda t: t.pop(GLOBAL) and None, f"tensor '{GLOBAL}' is absent"),
    "packed of another shape": (
        replace(f"{UP}.weight_packed", "U8", np.zeros((256, 32), np.uint8)),
        r"is U8 \[256, 32\]; expected U8 \[256, 64\]",
    ),
    "packed of another dtype": (
        replace(f"{UP}.weight_packed", "I8", np.zeros((256, 64), np.int8)),
        r"is I8 \[256, 64\]; expected U8",
    ),
    "scales of another dtype": (
        replace(SCALE, "BF16", np.zeros((256, 8), np.uint16)),
        r"is BF16 \[256, 8\]; expected F8_E4M3 \[256, 8\]",
    ),
    "scales for another group": (
        replace(SCALE, "F8_E4M3", np.zeros((256, 4), np.uint8)),
        r"\[256, 4\]; expected F8_E4M3 \[256, 8\]",
    ),
    "scale 0x7f is NaN": (poke(SCALE, 0x7F), "holds a NaN scale"),
    "scale 0xff is NaN": (poke(SCALE, 0xFF), "holds a NaN scale"),
    "scale 0xb8 is -1": (poke(SCALE, 0xB8), "holds a negative scale, byte 0xb8"),
    "two global scales": (
        replace(GLOBAL, "F32", np.ones(2, np.float32)),
        r"\[2\]; expected F32 \[1\] or \[\]",
    ),
    "global scale 0": (replace(GLOBAL, "F32", np.zeros(1, np.float32)), "is 0.0; expected a finite scale"),
    "global scale -1": (replace(GLOBAL, "F32", -np.ones(1, np.float32)), "is -1.0; expected a finite scale"),
    "global scale NaN": (replace(GLOBAL, "F32", np.array([np.nan], np.float32)), "is nan; expected"),
    "global scale infinite": (replace(GLOBAL, "F32", np.array([np.inf], np.float32)), "is inf; expected"),
    "global scale that overflows": (
        replace(GLOBAL, "F32", np.array([1e-38], np.float32)),
        "keeps weights finite",
    ),
    "input scale 0": (replace(INPUT, "F32", np.zeros(1, np.float32)), "is 0.0; expected a finite scale"),
    "norm with infinity": (poke("model.norm.weight", 0x7F80), "holds NaN or infinity"),
    "head with NaN": (poke("lm_head.weight", 0x7FC0), "holds NaN or infinity"),
    "norm of another length": (
        replace("model.norm.weight", "BF16", np.zeros(64, np.uint16)),
        r"is BF16 \[64\]; expected BF16 or F16 or F32 \[128\]",
    ),
    "norm of integers": (replace("model.norm.weight", "I64", np.zeros(128, np.int64)), "is I64"),
    "bias that config.json denies": (
        replace(f"{UP}.bias", "BF16", np.zeros(256, np.uint16)),
        "has a bias although",
    ),
    "weight beside weight_packed": (
        replace(f"{UP}.weight", "BF16", np.zeros((256, 128), np.uint16)),
        "both weight and weight_packed",
    ),
}


@pytest.mark.parametrize(("edit", "message"), NVFP4_EDITS.values(), ids=list(NVFP4_EDITS))
def test_wrong_tensors(golden: Path, tmp_path: Path, edit: Callable[[Tensors], None], message: str) -> None:
    copy = copy_checkpoint(golden / "mistral-nvfp4-ct", tmp_path)
    edit_tensors(copy, edit)
    with pytest.raises(MalformedCheckpoint, match=message):
        Checkpoint.open(copy)


def test_mxfp4_scale_255_is_nan(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    edit_tensors(copy, poke(SCALE, 255))
    with pytest.raises(MalformedCheckpoint, match="holds a NaN scale"):
        Checkpoint.open(copy)


def test_mxfp4_with_a_global_scale_is_neither(golden: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    edit_tensors(copy, replace(GLOBAL, "F32", np.ones(1, np.float32)))
    with pytest.raises(MalformedCheckpoint, match="is said to be mxfp4, which has no"):
        Checkpoint.open(copy)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "10^9 layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "1000 layers": ({"num_hidden_layers": 1000}, "model.layers.2.input_layernorm is absent"),
    "vocabulary of 2^63": ({"vocab_size": 1 << 63}, "vocab_size"),
    "vocabulary of another model": (
        {"vocab_size": 32000},
        r"is BF16 \[320, 128\]; expected .* \[32000, 128\]",
    ),
    "hidden size of another model": ({"hidden_size": 4096, "head_dim": 32}, r"expected .* \[320, 4096\]"),
    "columns no multiple of 32": ({"intermediate_size": 100}, "expected U8"),
    "heads of another model": ({"num_attention_heads": 8}, r"is U8 \[128, 64\]; expected U8 \[256, 64\]"),
    "negative layers": ({"num_hidden_layers": -2}, "num_hidden_layers"),
    "layers as text": ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    "layers as a list": ({"num_hidden_layers": [2]}, "num_hidden_layers"),
    "layers as true": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "a float that overflows": ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    "a number of 5000 digits": ({"rope_theta": 1 << 4000}, "rope_theta"),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=list(CONFIGS))
def test_config_of_absurd_sizes(golden: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    copy = copy_checkpoint(golden / "mistral-mxfp4-ct", tmp_path)
    edit_json(copy / "config.json", lambda config: config.update(changes))
    if "rope_theta" in changes:
        edit_json(copy / "config.json", lambda config: config.pop("rope_parameters") and None)
    with pytest.raises(MalformedCheckpoint, match=message):
        Checkpoint.open(copy)
