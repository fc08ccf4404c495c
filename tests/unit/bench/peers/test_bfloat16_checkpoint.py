"""The checkpoint for systems that read no FP4: the same numbers, rounded to bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.bench.peers.conversion.bfloat16_checkpoint import write_bfloat16
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors


@pytest.mark.parametrize(("shape", "format"), [("tiny", "mxfp4"), ("tiny-moe", "nvfp4")])
def test_it_holds_the_same_model(tmp_path: Path, shape: str, format: str) -> None:
    make_random_checkpoint(tmp_path / "model", SHAPES[shape], format, "compressed-tensors")
    source = Checkpoint.open(tmp_path / "model")
    write_bfloat16(source, tmp_path / "bfloat16")
    plain = Checkpoint.open(tmp_path / "bfloat16")
    assert plain.layout is Layout.PLAIN
    assert len(plain.modules()) == len(source.modules())
    for theirs, ours in zip(plain.modules(), source.modules(), strict=True):
        assert isinstance(theirs, DenseTensors)
        expected = ours.decoded(round_to_bfloat16=True) if isinstance(ours, Fp4Tensors) else ours.as_float32()
        assert np.array_equal(theirs.as_float32(), expected)
    config = json.loads((tmp_path / "bfloat16" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (tmp_path / "bfloat16" / "tokenizer.json").exists()


def test_nothing_is_left_when_the_disk_refuses(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "model", SHAPES["tiny"], "mxfp4", "compressed-tensors")
    (tmp_path / "bfloat16").mkdir()
    (tmp_path / "bfloat16" / "in the way").touch()
    with pytest.raises(OSError, match="not empty"):
        write_bfloat16(Checkpoint.open(tmp_path / "model"), tmp_path / "bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bfloat16", "model"]
