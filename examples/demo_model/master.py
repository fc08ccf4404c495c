"""A BF16 master read back for computing with it in float32. Needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from examples.demo_model.model import LanguageModel, Shape


def load_master(directory: Path) -> LanguageModel:
    """The BF16 checkpoint that train.py or distill.py wrote, as a float32 model."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = LanguageModel(Shape.from_config(config))
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()
