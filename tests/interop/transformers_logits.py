"""Runs where torch, transformers and compressed-tensors are: `transformers_logits.py JOBS.json`.

JOBS.json is a list of {"directory", "token_ids", "output"}; each output gets float32 logits [num_tokens,
vocab_size] as .npy. Started by check_transformers.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def logits(directory: str, token_ids: list[int]) -> np.ndarray:
    """The library's own forward: weights decompressed, activations quantised as the checkpoint declares."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, local_files_only=True
    ).eval()
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        model(ids)  # decompresses the weights, in bfloat16
        # transformers refuses model.float() of a quantised model; the module's own cast is what is meant here
        torch.nn.Module.float(model)
        return model(ids).logits[0].numpy()


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        np.save(job["output"], logits(job["directory"], job["token_ids"]))


if __name__ == "__main__":
    main()
