"""Logits of every position of a token sequence, computed by the CPU engine's model, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import LinearOptions, build_linear
from engines.cpu.models.decoder import Decoder
from engines.cpu.models.loader import LinearBuilder, load_decoder
from engines.errors import EngineError, InvalidRequest

BLOCK_SIZE = 16
CHUNK_TOKENS = 256
_LOGITS_LIMIT_BYTES = 32 * 1024 * 1024

ACTIVATIONS = ("checkpoint", "bf16")
NUMERICS = ("fast", "reference")


@dataclass(frozen=True, slots=True)
class LogitsChunk:
    """Rows of consecutive positions: `rows` float32 [num_rows, vocab_size], the first of position `start`.

    The row of position p is the distribution of the token at p + 1.
    """

    start: int
    rows: NDArray[np.float32]


class SequenceModel:
    """A checkpoint loaded to run one sequence of up to `max_tokens` tokens at a time. Not thread-safe."""

    def __init__(self, config: ModelConfig, model: Decoder, cache: KvCache, max_tokens: int) -> None:
        """Use `load`."""
        self.config = config
        self.max_tokens = max_tokens
        self._model = model
        self._cache = cache
        row_bytes = 4 * model.vocab_size
        self._chunk_tokens = max(1, min(CHUNK_TOKENS, _LOGITS_LIMIT_BYTES // row_bytes))
        self._table = np.arange(cache.num_blocks, dtype=np.int32)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        max_tokens: int,
        *,
        activations: str = "checkpoint",
        numerics: str = "fast",
        kv_cache_dtype: str = "auto",
        build: LinearBuilder = build_linear,
    ) -> SequenceModel:
        """Repack the weights and set up a KV cache of `max_tokens` tokens.

        `activations`, `numerics` and `kv_cache_dtype` as in `engines.base.EngineOptions`. Raises
        InvalidRequest for a value that is none of theirs or a length beyond the model's, MalformedCheckpoint
        for a missing input scale.
        """
        _require_choice("activations", activations, ACTIVATIONS)
        _require_choice("numerics", numerics, NUMERICS)
        limit = checkpoint.config.max_position_embeddings
        if not 1 <= max_tokens <= limit:
            raise InvalidRequest(
                f"{checkpoint.directory}: asked for sequences of {max_tokens} tokens; expected 1 to {limit} "
                "(max_position_embeddings in config.json)"
            )
        reference = numerics == "reference"
        options = LinearOptions(activations == "checkpoint", reference)
        model = load_decoder(checkpoint, options, max_tokens, build)
        shape = KvCacheShape.of(
            checkpoint.config, BLOCK_SIZE, reference_numerics=reference, kv_cache_dtype=kv_cache_dtype
        )
        return cls(checkpoint.config, model, KvCache(shape, -(-max_tokens // BLOCK_SIZE)), max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of logits per row."""
        return self._model.vocab_size

    def logits(self, token_ids: Sequence[int], first_row: int = 0) -> Iterator[LogitsChunk]:
        """The rows from position `first_row` to the last, in order; earlier positions are context only.

        At most a few dozen MiB are held at a time. Raises InvalidRequest for too many tokens or an id
        outside the vocabulary, EngineError for logits that are not finite.
        """
        self._check(token_ids)
        ids = np.asarray(token_ids, np.int32)
        for start in range(0, ids.size, self._chunk_tokens):
            end = min(start + self._chunk_tokens, ids.size)
            wanted = np.arange(max(first_row - start, 0), end - start, dtype=np.int64)
            batch = sequence_batch(ids, start, end, self._table, BLOCK_SIZE, wanted)
            rows = self._model.forward(batch, self._cache)
            if rows.shape[0] == 0:
                continue
            if not np.isfinite(rows).all():
                raise EngineError(
                    f"the model produced NaN or infinite logits between the positions {start} and {end}; "
                    "the checkpoint's weights or scales are likely damaged (check them with `nybble inspect`)"
                )
            yield LogitsChunk(max(first_row, start), rows)

    def run(self, token_ids: Sequence[int]) -> None:
        """A forward pass for its side effects, those of layers that record their input; no logits."""
        self._check(token_ids)
        ids = np.asarray(token_ids, np.int32)
        nothing = np.empty(0, np.int64)
        for start in range(0, ids.size, self._chunk_tokens):
            end = min(start + self._chunk_tokens, ids.size)
            self._model.forward(
                sequence_batch(ids, start, end, self._table, BLOCK_SIZE, nothing), self._cache
            )

    def _check(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) > self.max_tokens:
            raise InvalidRequest(f"got {len(token_ids)} tokens; expected at most {self.max_tokens}")
        wrong = next((t for t in token_ids if not 0 <= t < self.config.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token id {wrong} is outside the model's vocabulary of {self.config.vocab_size}; "
                "was the text made into tokens for another model?"
            )


def sequence_batch(
    token_ids: NDArray[np.int32],
    start: int,
    end: int,
    block_table: NDArray[np.int32],
    block_size: int,
    logits_rows: NDArray[np.int64],
) -> ForwardBatch:
    """The batch that computes positions `start` to `end` of one sequence whose blocks are `block_table`.

    `logits_rows` int64, counted from `start`: the rows whose logits are wanted.
    """
    positions = np.arange(start, end, dtype=np.int64)
    blocks = block_table[positions // block_size].astype(np.int64)
    return ForwardBatch(
        token_ids=token_ids[start:end],
        positions=positions,
        slots=blocks * block_size + positions % block_size,
        block_tables=block_table[None, :],
        query_starts=np.array([0, end - start], np.int32),
        context_lens=np.array([end], np.int32),
        logits_rows=logits_rows,
    )


def open_model(
    directory: Path, max_tokens: int, *, activations: str = "checkpoint", numerics: str = "fast"
) -> SequenceModel:
    """`SequenceModel.load` of the checkpoint in `directory`. Raises CheckpointError too."""
    checkpoint = Checkpoint.open(directory)
    return SequenceModel.load(checkpoint, max_tokens, activations=activations, numerics=numerics)


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequest(f"{name} {value!r} is unknown; expected one of: {', '.join(allowed)}")
