"""The comparison with the official converter's output, which stands here for itself with a few changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.trtllm.checkpoint_writer import write_checkpoint
from tests.support.checkpoint_edits import Tensors, edit_json, edit_tensors

SCRIPT = Path(__file__).parents[3] / "scripts" / "compare_trtllm_checkpoint.py"


@pytest.fixture
def pair(golden: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same checkpoint twice."""
    ours = tmp_path / "ours"
    ours.mkdir()
    checkpoint = Checkpoint.open(golden / "mixtral-nvfp4-modelopt")
    write_checkpoint(checkpoint, ours, tensor_parallel=2, kv_cache_dtype="bfloat16")
    return Path(shutil.copytree(ours, tmp_path / "official")), ours


def compare(official: Path, ours: Path) -> tuple[int, dict[str, Any]]:
    ended = subprocess.run(
        (sys.executable, str(SCRIPT), str(official), str(ours)),
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPT.parents[1],
        env={"PYTHONPATH": str(SCRIPT.parents[1])},
    )
    assert ended.stderr == ""
    return ended.returncode, json.loads(ended.stdout)


def edit_rank(directory: Path, edit: Callable[[Tensors], None]) -> None:
    (directory / "rank1.safetensors").rename(directory / "model.safetensors")
    edit_tensors(directory, edit)
    (directory / "model.safetensors").rename(directory / "rank1.safetensors")


def test_equal_checkpoints_and_the_converters_own_extras(pair: tuple[Path, Path]) -> None:
    official, ours = pair
    edit_json(
        official / "config.json",
        lambda config: config.update(
            producer={"name": "x"}, quantization={**config["quantization"], "group_size": 128}
        ),
    )
    edit_rank(official, lambda tensors: tensors.update({"buffer": ("F32", np.zeros(3, np.float32))}))
    status, report = compare(official, ours)
    assert (status, report["equal"], report["num_equal_tensors"]) == (0, True, 2 * 53)
    assert report["ranks"]["rank1.safetensors"]["only_official"] == ["buffer"]
    assert {difference["key"] for difference in report["config"]} == {"producer", "quantization.group_size"}


def test_a_byte_that_differs_is_found(pair: tuple[Path, Path]) -> None:
    official, ours = pair
    name = "transformer.layers.1.mlp.fc.weight"

    def flip(tensors: Tensors) -> None:
        tensors[name][1].reshape(-1)[77] ^= 1

    edit_rank(official, flip)
    status, report = compare(official, ours)
    (difference,) = report["ranks"]["rank1.safetensors"]["different"]
    assert (status, report["equal"]) == (1, False)
    assert (difference["tensor"], difference["num_bytes_different"], difference["first_offset"]) == (
        name,
        1,
        77,
    )


def test_missing_ranks_tensors_and_settings_are_faults(pair: tuple[Path, Path]) -> None:
    official, ours = pair
    edit_rank(official, lambda tensors: tensors.pop("lm_head.weight") and None)
    status, report = compare(official, ours)
    assert (status, report["ranks"]["rank1.safetensors"]["only_ours"]) == (1, ["lm_head.weight"])
    (official / "rank1.safetensors").unlink()
    status, report = compare(official, ours)
    assert (status, report["ranks"]["rank1.safetensors"]["missing"]) == (1, ["official"])
    shutil.copyfile(ours / "rank1.safetensors", official / "rank1.safetensors")
    edit_json(official / "config.json", lambda config: config.update(rotary_base=10000.0))
    assert compare(official, ours)[0] == 1
