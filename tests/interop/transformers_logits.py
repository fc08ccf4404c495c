"""Runs where torch, transformers and compressed-tensors are: `transformers_logits.py JOBS.json`.

JOBS.json is a list of {"directory", "sequences", "output"}; each output gets float32 logits [all tokens,
vocab_size] as .npy, one sequence after another. Started by check_transformers.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def logits(directory: str, sequences: list[list[int]]) -> np.ndarray:
    """The library's own forward: weights decompressed, activations quantised as the checkpoint declares."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, local_files_only=True
    ).eval()
    with torch.no_grad():
        model(torch.tensor([sequences[0]]))  # decompresses the weights, in bfloat16
        # transformers refuses model.float() of a quantised model; the module's own cast is what is meant here
        torch.nn.Module.float(model)
        rows = [model(torch.tensor([token_ids])).logits[0].numpy() for token_ids in sequences]
    return np.concatenate(rows)


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        np.save(job["output"], logits(job["directory"], job["sequences"]))


if __name__ == "__main__":
    main()
