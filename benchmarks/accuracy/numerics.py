"""Perplexity of the demo models with fast against reference numerics, and which part makes the difference.

    python -m benchmarks.accuracy.numerics --output benchmarks/results/numerics-perplexity.json

The demo's own held-out text (demo_text.py), every document by itself. Besides the two numerics, each part of
the fast one is switched on alone: the products of the linear layers, and the KV cache in bfloat16 or FP8.
Documents are compared in pairs; `standard_error` is that of the relative difference, over documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.accuracy.demo_text import held_out_ids
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import LinearOptions
from engines.cpu.logprobs import log_sum_exp
from engines.cpu.models.loader import load_decoder
from engines.evaluate.logits import BLOCK_SIZE, SequenceModel
from engines.evaluate.perplexity import chunk_targets, pick_targets

_CHECKPOINTS = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoints"
_MODELS = ("mistral-mxfp4", "mixtral-nvfp4")
# None of them is a seed that something was trained, tuned or compared on; the first is demo_text.py's own.
_SEEDS = (30_000, 31_000, 32_000, 33_000, 34_000)
BOUND = 0.005


@dataclass(frozen=True, slots=True)
class Part:
    """What is computed as in the reference: the products of linear layers, and the KV cache."""

    name: str
    reference_products: bool
    reference_cache: bool
    kv_cache_dtype: str = "auto"


REFERENCE = Part("reference", reference_products=True, reference_cache=True)
PARTS = (
    Part("fast", reference_products=False, reference_cache=False),
    Part("fast products alone", reference_products=False, reference_cache=True),
    Part("bfloat16 KV cache alone", reference_products=True, reference_cache=False),
    Part("FP8 KV cache alone", reference_products=True, reference_cache=False, kv_cache_dtype="fp8"),
)


def negative_log_likelihoods(model: SequenceModel, documents: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The sum over each document's tokens but the first, in nats; float64 [num_documents]."""
    sums = np.zeros(len(documents))
    for index, tokens in enumerate(documents):
        for chunk in model.logits(tokens):
            targets = chunk_targets(tokens, chunk)
            rows = chunk.rows[: targets.size]
            sums[index] += float((log_sum_exp(rows) - pick_targets(rows, targets)).sum())
    return sums


def load(checkpoint: Checkpoint, max_tokens: int, part: Part, *, w4a4: bool) -> SequenceModel:
    """The model with these numerics."""
    decoder = load_decoder(checkpoint, LinearOptions(w4a4, part.reference_products), max_tokens)
    shape = KvCacheShape.of(
        checkpoint.config,
        BLOCK_SIZE,
        reference_numerics=part.reference_cache,
        kv_cache_dtype=part.kv_cache_dtype,
    )
    cache = KvCache(shape, -(-max_tokens // BLOCK_SIZE))
    return SequenceModel(checkpoint.config, decoder, cache, max_tokens)


def difference(
    sums: NDArray[np.float64], reference: NDArray[np.float64], num_tokens: NDArray[np.int64]
) -> tuple[float, float]:
    """The relative difference of two perplexities, and its standard error (of a ratio of sums)."""
    gained = sums - reference
    mean = gained.sum() / num_tokens.sum()
    error = np.sqrt(((gained - mean * num_tokens) ** 2).sum()) / num_tokens.sum()
    return float(np.expm1(mean)), float(error)


def measure(name: str, *, w4a4: bool, num_seeds: int) -> dict[str, Any]:
    """One model with one kind of activations: all parts beside the reference."""
    directory = _CHECKPOINTS / name
    documents = [tokens for seed in _SEEDS[:num_seeds] for tokens in held_out_ids(directory, seed)]
    num_tokens = np.array([len(tokens) - 1 for tokens in documents])
    longest = max(map(len, documents))
    checkpoint = Checkpoint.open(directory)
    sums = {
        part.name: negative_log_likelihoods(load(checkpoint, longest, part, w4a4=w4a4), documents)
        for part in (REFERENCE, *PARTS)
    }
    differences = {}
    for part in PARTS:
        relative, error = difference(sums[part.name], sums[REFERENCE.name], num_tokens)
        differences[part.name] = {
            "perplexity": round(float(np.exp(sums[part.name].sum() / num_tokens.sum())), 5),
            "relative_difference": round(relative, 7),
            "standard_error": round(error, 7),
        }
    return {
        "model": name,
        "activations": "W4A4" if w4a4 else "W4A16",
        "num_documents": len(documents),
        "num_tokens": int(num_tokens.sum()),
        "reference_perplexity": round(float(np.exp(sums[REFERENCE.name].sum() / num_tokens.sum())), 5),
        "parts": differences,
        "is_within_bound": abs(differences["fast"]["relative_difference"]) <= BOUND,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.numerics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=len(_SEEDS), choices=range(1, len(_SEEDS) + 1))
    parser.add_argument("--models", nargs="+", default=_MODELS, choices=_MODELS)
    record.add_output_option(parser)
    options = parser.parse_args()
    begun = record.begin("benchmarks.accuracy.numerics")
    rows = [
        measure(name, w4a4=w4a4, num_seeds=options.seeds) for name in options.models for w4a4 in (True, False)
    ]
    record.publish(begun.document({"bound": BOUND, "rows": rows}), options.output)


if __name__ == "__main__":
    main()
