"""From the scheduler's batch to the kernels' arrays, through the model, to rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache
from engines.cpu.models.decoder import Decoder
from engines.scheduler import Batch, ScheduledSequence

_FEW_POSITIONS = 8


@dataclass(frozen=True, slots=True)
class SequenceLogits:
    """What a step computed for one sequence.

    `prompt` are the rows of the prompt positions in this chunk when their log-probabilities are wanted,
    float32 [num_tokens, vocab_size] starting at the chunk's first position; `following` are the rows to
    sample from, float32 [1 + number of drafts, vocab_size], when the chunk reached the newest token: its row
    and those of the drafts after it; `likeliest` are their `token_draw.likeliest_tokens`, which may be all
    that was computed of them.
    """

    scheduled: ScheduledSequence
    prompt: NDArray[np.float32] | None
    following: NDArray[np.float32] | None
    likeliest: Sequence[int] = ()


class ModelRunner:
    """Runs one batch at a time over the KV cache it owns."""

    def __init__(self, model: Decoder, cache: KvCache, block_size: int) -> None:
        self._model = model
        self._cache = cache
        self._block_size = block_size

    def run(self, batch: Batch, *, wants_logits: bool = True) -> list[SequenceLogits]:
        """Compute the batch's tokens; one entry per scheduled sequence, in the batch's order.

        Without `wants_logits` the likeliest tokens alone; no sequence may then want its prompt's.
        """
        forward_batch = self._forward_batch(batch)
        logits: NDArray[np.float32] | None = None
        if wants_logits or not self._model.screens_head:
            logits, likeliest = self._model.step(forward_batch, self._cache)
        else:
            likeliest = self._model.likeliest(forward_batch, self._cache)
        likeliest_ids: list[int] = likeliest.tolist()
        results = []
        end = 0
        for scheduled in batch.scheduled:
            start, end = end, end + _num_logits_rows(scheduled)
            first = end - 1 - len(scheduled.draft_token_ids) if scheduled.needs_logits else end
            prompt = following = None
            if logits is not None:
                prompt = logits[start:end] if scheduled.sequence.wants_prompt_logits else None
                following = logits[first:end] if scheduled.needs_logits else None
            results.append(SequenceLogits(scheduled, prompt, following, likeliest_ids[first:end]))
        return results

    def _forward_batch(self, batch: Batch) -> ForwardBatch:
        token_ids: list[int] = []
        query_starts = [0]
        tables = [scheduled.sequence.block_table for scheduled in batch.scheduled]
        block_tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
        logits_rows: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for index, scheduled in enumerate(batch.scheduled):
            start, end = scheduled.start, scheduled.start + scheduled.num_tokens
            token_ids.extend(scheduled.token_ids)
            block_tables[index, : len(tables[index])] = tables[index]
            positions.extend(range(start, end))
            slots.extend(self._slots(tables[index], start, end))
            query_starts.append(query_starts[-1] + scheduled.num_tokens)
            num_logits = _num_logits_rows(scheduled)
            logits_rows.extend(range(query_starts[-1] - num_logits, query_starts[-1]))
        return ForwardBatch(
            token_ids=np.asarray(token_ids, np.int32),
            positions=np.asarray(positions, np.int64),
            slots=np.asarray(slots, np.int64),
            block_tables=block_tables,
            query_starts=np.asarray(query_starts, np.int32),
            context_lens=np.asarray([s.start + s.num_tokens for s in batch.scheduled], np.int32),
            logits_rows=np.asarray(logits_rows, np.int64),
        )

    def _slots(self, table: Sequence[int], start: int, end: int) -> list[int]:
        """Cache slots of the positions [start, end). NumPy calls cost more than the few of a decode."""
        size = self._block_size
        if end - start <= _FEW_POSITIONS:
            return [table[row // size] * size + row % size for row in range(start, end)]
        rows = np.arange(start, end)
        slots: list[int] = (np.asarray(table, np.int64)[rows // size] * size + rows % size).tolist()
        return slots


def _num_logits_rows(scheduled: ScheduledSequence) -> int:
    """All rows of the chunk when prompt log-probabilities are wanted, else those that are sampled from."""
    if scheduled.sequence.wants_prompt_logits:
        return scheduled.num_tokens
    return 1 + len(scheduled.draft_token_ids) if scheduled.needs_logits else 0
