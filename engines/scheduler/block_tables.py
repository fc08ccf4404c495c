"""The blocks of sequences: what a table lacks, what it reuses of the prefix cache, what it gives back."""

from __future__ import annotations

from engines.scheduler.block_pool import BlockPool
from engines.scheduler.config import SchedulerConfig
from engines.scheduler.prefix_cache import extend_block_keys
from engines.scheduler.sequence import Sequence


class BlockTables:
    """Fills and empties the block tables of sequences from one pool."""

    def __init__(self, pool: BlockPool, config: SchedulerConfig) -> None:
        self._pool = pool
        self._config = config

    def num_lacking(self, sequence: Sequence) -> int:
        """Blocks missing from the table for the known tokens and one more."""
        num_tokens = min(sequence.num_tokens + 1, self._config.max_sequence_len)
        return max(0, self._pool.num_blocks_for(num_tokens) - len(sequence.block_table))

    def reusable(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the sequence's prefix; at least the newest token is always left to compute."""
        if not self._config.prefix_caching or sequence.wants_prompt_logits:
            return []
        num_blocks = (sequence.num_tokens - 1) // self._pool.block_size
        extend_block_keys(sequence.block_keys, sequence.token_ids, self._pool.block_size, num_blocks)
        return self._pool.match(sequence.block_keys[:num_blocks])

    def begin(self, sequence: Sequence) -> None:
        """Start the table with the cached blocks of the prefix, whose tokens count as computed."""
        reused = self.reusable(sequence)
        self._pool.share(reused)
        sequence.block_table = reused
        sequence.num_registered_blocks = len(reused)
        sequence.num_computed_tokens = len(reused) * self._pool.block_size

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Allocate what the table lacks for `num_tokens`, as far as there are free blocks."""
        num_missing = self._pool.num_blocks_for(num_tokens) - len(sequence.block_table)
        for _ in range(min(num_missing, self._pool.num_free)):
            sequence.block_table.append(self._pool.allocate())

    def trim(self, sequence: Sequence) -> None:
        """Give back blocks beyond the known tokens."""
        num_kept = self._pool.num_blocks_for(sequence.num_tokens)
        self._pool.release(sequence.block_table[num_kept:])
        del sequence.block_table[num_kept:]

    def release(self, sequence: Sequence) -> None:
        """Give all of them back."""
        self._pool.release(sequence.block_table)
        sequence.block_table = []

    def register_full(self, sequence: Sequence) -> None:
        """Let others reuse the blocks that are computed to their end."""
        if not self._config.prefix_caching:
            return
        num_full = sequence.num_computed_tokens // self._pool.block_size
        extend_block_keys(sequence.block_keys, sequence.token_ids, self._pool.block_size, num_full)
        for index in range(sequence.num_registered_blocks, num_full):
            self._pool.register(sequence.block_table[index], sequence.block_keys[index])
        sequence.num_registered_blocks = num_full
