"""The largest magnitude that enters each linear layer while the model reads text. Needs PyTorch."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from examples.demo_model.model import SHAPES, LanguageModel
from examples.demo_model.packing import training_batches

_NUM_BATCHES = 16
_TOKENS_PER_BATCH = 4096
_SEED = 7


def load_master(directory: Path, kind: str) -> LanguageModel:
    """The BF16 checkpoint that train.py wrote, as a float32 model."""
    model = LanguageModel(SHAPES[kind])
    model.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
    )
    return model.eval()


@torch.no_grad()
def input_maxima(directory: Path, kind: str) -> dict[str, float]:
    """Module name -> largest magnitude of its input over 65,536 tokens of training text."""
    model = load_master(directory, kind)
    maxima: dict[str, float] = {}

    def watch(name: str) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                maxima[name] = max(maxima.get(name, 0.0), inputs[0].abs().max().item())

        model.get_submodule(name).register_forward_pre_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            watch(name)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    batches = training_batches(tokenizer, _SEED, tokens=_TOKENS_PER_BATCH, length=256, long_every=4)
    for batch in itertools.islice(batches, _NUM_BATCHES):
        model(torch.from_numpy(batch.token_ids), torch.from_numpy(batch.segments))
    return maxima
