"""The residual stream of all calibration tokens between two layers, kept in a file: memory stays bounded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.durable_writes import write_at
from engines.cpu.forward_batch import ForwardBatch

Float32Array = NDArray[np.float32]
BLOCK_SIZE = 16
_BATCH_TOKENS = 2048


class HiddenStates:
    """float32 [num_tokens, hidden_size] in a file; rows are read and written by range."""

    def __init__(self, path: Path, num_tokens: int, hidden_size: int) -> None:
        """Open `path`, made and reserved if absent. OSError as the file system does."""
        self.path = path
        self._hidden_size = hidden_size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.posix_fallocate(self._descriptor, 0, max(1, num_tokens * hidden_size * 4))

    def read(self, begin: int, end: int) -> Float32Array:
        """Rows [begin, end) as a new array."""
        row_bytes = self._hidden_size * 4
        rows = np.empty((end - begin, self._hidden_size), np.float32)
        view = rows.reshape(-1).data.cast("B")
        position = 0
        while position < len(view):
            count = os.preadv(self._descriptor, [view[position:]], begin * row_bytes + position)
            if count == 0:
                raise OSError(f"{self.path}: ends before row {end}")
            position += count
        return rows

    def write(self, begin: int, rows: Float32Array) -> None:
        """Store `rows` from row `begin` on."""
        view = np.ascontiguousarray(rows).reshape(-1).data.cast("B")
        write_at(self._descriptor, view, begin * self._hidden_size * 4)

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; more than once does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationBatch:
    """Whole samples whose rows are [begin, end) of the hidden states, laid out for the kernels."""

    begin: int
    end: int
    forward: ForwardBatch


def make_batches(samples: Sequence[Sequence[int]]) -> list[CalibrationBatch]:
    """All samples in order, a few thousand tokens to a batch; a sample is never split."""
    batches: list[CalibrationBatch] = []
    current: list[Sequence[int]] = []
    begin = 0
    for sample in samples:
        filled = sum(map(len, current))
        if current and filled + len(sample) > _BATCH_TOKENS:
            batches.append(CalibrationBatch(begin, begin + filled, _forward_batch(current)))
            begin += filled
            current = []
        current.append(sample)
    batches.append(CalibrationBatch(begin, begin + sum(map(len, current)), _forward_batch(current)))
    return batches


def num_cache_blocks(batches: Sequence[CalibrationBatch]) -> int:
    """Blocks of the KV cache that the largest batch needs."""
    return max(int(batch.forward.block_tables.max()) + 1 for batch in batches)


def _forward_batch(samples: Sequence[Sequence[int]]) -> ForwardBatch:
    lengths = [len(sample) for sample in samples]
    num_blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    tables = np.zeros((len(samples), max(num_blocks)), np.int32)
    positions, slots = [], []
    first_block = 0
    for index, length in enumerate(lengths):
        rows = np.arange(length, dtype=np.int64)
        tables[index, : num_blocks[index]] = first_block + np.arange(num_blocks[index])
        positions.append(rows)
        slots.append(first_block * BLOCK_SIZE + rows)
        first_block += num_blocks[index]
    return ForwardBatch(
        token_ids=np.concatenate([np.asarray(sample, np.int32) for sample in samples]),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        block_tables=tables,
        query_starts=np.cumsum([0, *lengths]).astype(np.int32),
        context_lens=np.asarray(lengths, np.int32),
        logits_rows=np.empty(0, np.int64),
    )
