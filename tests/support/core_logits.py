"""All rows of logits for a token sequence, computed by the CPU engine's own model and scheduler arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import LinearOptions
from engines.cpu.models.loader import load_decoder
from engines.evaluate.logits import sequence_batch

BLOCK_SIZE = 8


def all_logits(
    directory: Path, token_ids: list[int], *, activations: str, numerics: str, chunk: int
) -> np.ndarray:
    """float32 [len(token_ids), vocab_size], prefilled in chunks of `chunk` tokens over scattered blocks."""
    checkpoint = Checkpoint.open(directory)
    reference = numerics == "reference"
    options = LinearOptions(activations == "checkpoint", reference)
    model = load_decoder(checkpoint, options, checkpoint.config.max_position_embeddings)
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    shape = KvCacheShape.of(checkpoint.config, BLOCK_SIZE, reference_numerics=reference)
    cache = KvCache(shape, num_blocks + 3)
    table = np.arange(num_blocks, dtype=np.int64)[::-1] + 2  # neither in order nor from zero
    rows = []
    for start in range(0, len(token_ids), chunk):
        end = min(start + chunk, len(token_ids))
        wanted = np.arange(end - start, dtype=np.int64)
        ids = np.asarray(token_ids, np.int32)
        batch = sequence_batch(ids, start, end, table.astype(np.int32), BLOCK_SIZE, wanted)
        rows.append(model.forward(batch, cache))
    return np.concatenate(rows)
