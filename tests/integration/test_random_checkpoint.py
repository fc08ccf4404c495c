"""The benchmark models are real checkpoints: every tensor is read, of the declared kind, finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import random_checkpoint
from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.inspection import inspect
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors


@pytest.mark.parametrize("shape", ["tiny", "tiny-moe"])
@pytest.mark.parametrize(
    ("format", "layout"),
    [("mxfp4", "compressed-tensors"), ("nvfp4", "compressed-tensors"), ("nvfp4", "modelopt")],
)
def test_every_module_is_there(tmp_path: Path, shape: str, format: str, layout: str) -> None:
    num_parameters = make_random_checkpoint(tmp_path / "model", SHAPES[shape], format, layout)
    checkpoint = Checkpoint.open(tmp_path / "model")
    modules = checkpoint.modules()
    assert checkpoint.layout.value.startswith(layout)
    matrices = [each for each in modules if isinstance(each, DenseTensors) and len(each.shape) == 2]
    dense = {each.name.rpartition(".")[2] for each in matrices}
    routers = {"gate"} if shape == "tiny-moe" else set()
    assert dense == {"embed_tokens", "lm_head"} | routers
    assert all(module.quantizes_activations for module in modules if isinstance(module, Fp4Tensors))
    assert inspect(tmp_path / "model").num_parameters == num_parameters


def test_activations_keep_their_size(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "model", SHAPES["tiny"], "mxfp4", "compressed-tensors")
    module = Checkpoint.open(tmp_path / "model").linear("model.layers.0.mlp.down_proj")
    assert isinstance(module, Fp4Tensors)
    weight = module.decoded(round_to_bfloat16=False)
    assert 0.5 < np.sqrt(np.mean(np.square(weight)) * weight.shape[1]) < 2.0


def test_no_two_weights_are_alike(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "model", SHAPES["tiny"], "nvfp4", "modelopt")
    modules = Checkpoint.open(tmp_path / "model").modules()
    codes = [module.packed.tobytes() for module in modules if isinstance(module, Fp4Tensors)]
    assert len({each[:64] for each in codes}) == len(codes) == 14


def test_the_same_shape_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_random_checkpoint(tmp_path / name, SHAPES["tiny"], "nvfp4", "modelopt")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_large_ones_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 60_000)
    make_random_checkpoint(tmp_path / "model", SHAPES["tiny"], "mxfp4", "compressed-tensors")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert inspect(tmp_path / "model").num_parameters > 100_000


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        make_random_checkpoint(tmp_path, SHAPES["tiny"], "mxfp4", "compressed-tensors")
    with pytest.raises(ValueError, match="no checkpoints of mxfp4"):
        make_random_checkpoint(tmp_path / "model", SHAPES["tiny"], "mxfp4", "modelopt")
    assert list(tmp_path.iterdir()) == []
