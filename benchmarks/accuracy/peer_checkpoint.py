"""A peer's own FP4 checkpoint of a master, made by the Python of an environment that has the peer.

python peer_checkpoint.py llm-compressor|llm-compressor-gptq|modelopt MASTER DST mxfp4|nvfp4 SAMPLES.jsonl

SAMPLES: lines with `input_ids`, as examples.demo_model.calibration writes them. Everything else is the peer's
default; lm_head stays as it is. modelopt knows no MXFP4 file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Write the checkpoint to DST."""
    from transformers import AutoModelForCausalLM

    peer, master, destination, format, file = sys.argv[1:]
    samples = [json.loads(line)["input_ids"] for line in Path(file).read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(master, dtype="bfloat16")
    if peer == "modelopt":
        with_modelopt(model, samples, destination)
    else:
        with_llm_compressor(model, samples, destination, format.upper(), has_gptq=peer.endswith("-gptq"))


def with_llm_compressor(
    model: Any, samples: list[list[int]], destination: str, scheme: str, *, has_gptq: bool
) -> None:
    """`oneshot` with round-to-nearest or its GPTQ."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    modifier = GPTQModifier if has_gptq else QuantizationModifier
    recipe = modifier(targets="Linear", scheme=scheme, ignore=["lm_head", "re:.*block_sparse_moe.gate"])
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]
    oneshot(
        model=model,
        recipe=recipe,
        dataset=Dataset.from_list(rows),
        num_calibration_samples=len(rows),
        max_seq_length=max(map(len, samples)),
    )
    model.save_pretrained(destination, save_compressed=True)


def with_modelopt(model: Any, samples: list[list[int]], destination: str) -> None:
    """`mtq.quantize` with NVFP4_DEFAULT_CFG, exported as servers read it."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    def calibrate(module: Any) -> None:
        with torch.no_grad():
            for ids in samples:
                module(torch.tensor([ids]))

    mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, calibrate)
    export_hf_checkpoint(model, export_dir=destination)


if __name__ == "__main__":
    main()
