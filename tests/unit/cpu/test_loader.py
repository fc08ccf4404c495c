"""Loading a model: what becomes of the files' pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.shards import TensorDirectory
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu.linear import Linear, LinearOptions, build_linear
from engines.cpu.models.loader import load_decoder
from tests.support.random_checkpoint import RandomCheckpoint


def test_no_pages_of_the_files_are_kept_beside_their_repacked_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(TensorDirectory, "release_pages", lambda _: events.append("released"))

    def build(modules: Sequence[Fp4Tensors | DenseTensors], options: LinearOptions) -> Linear:
        events.append("read")
        return build_linear(modules, options)

    checkpoint = Checkpoint.open(RandomCheckpoint().write(tmp_path))
    load_decoder(checkpoint, LinearOptions(True, False), 32, build)
    parts = " ".join(events).split("released")
    assert len(parts) == checkpoint.config.num_layers + 2, "after each layer, and after the head"
    assert parts[-1] == "", "nothing is read after the last release"
