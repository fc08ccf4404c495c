"""Compare a BF16 master with transformers' own model: `python -m examples.demo_model.check_master DIR`.

Needs PyTorch. Both compute in float32; exits with 1 when a logit differs by more than 1e-3.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from examples.demo_model.corpus.mixture import training_items
from examples.demo_model.master import load_master
from examples.demo_model.packing import encode_item

TOLERANCE = 1e-3
_NUM_ITEMS = 20


@torch.no_grad()
def largest_difference(directory: Path) -> float:
    """The largest difference of any logit over some training items."""
    ours = load_master(directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    largest = 0.0
    for item in itertools.islice(training_items(1), _NUM_ITEMS):
        token_ids = torch.tensor([encode_item(tokenizer, item).token_ids])
        difference = ours(token_ids, torch.zeros_like(token_ids)) - theirs(token_ids).logits
        largest = max(largest, difference.abs().max().item())
    return largest


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.check_master", description=__doc__)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    difference = largest_difference(options.directory)
    print(f"largest difference of a logit: {difference:.2e}")
    if difference > TOLERANCE:
        parser.exit(1, f"error: expected at most {TOLERANCE}\n")


if __name__ == "__main__":
    main()
