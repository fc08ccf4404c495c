"""The KV cache's blocks as numbers: who holds how many references, and what is free."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from engines.errors import NoFreeBlocks
from engines.scheduler.prefix_cache import PrefixCache


class BlockPool:
    """Hands out blocks 0 .. num_blocks - 1, counts references, and keeps the content of freed ones findable.

    A block is in exactly one state: held (reference count above 0), blank (free, content worthless) or idle
    (free, content cached). Blank blocks are handed out first, then idle ones, least recently used first.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks {num_blocks} and block_size {block_size}: expected both at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._ref_counts = [0] * num_blocks
        self._blank = list(reversed(range(num_blocks)))
        self._cache = PrefixCache()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._blank) + self._cache.num_idle

    @property
    def num_used(self) -> int:
        """Blocks held by at least one sequence."""
        return self.num_blocks - self.num_free

    @property
    def num_cached_idle(self) -> int:
        """Free blocks whose content can still be reused."""
        return self._cache.num_idle

    def ref_count(self, block_id: int) -> int:
        """Number of sequences that hold `block_id`."""
        return self._ref_counts[block_id]

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks needed to hold the KV entries of `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self) -> int:
        """A block to write to, held once; evicts a cached one when no blank one is left.

        Raises NoFreeBlocks when every block is held.
        """
        if self._blank:
            block_id = self._blank.pop()
        elif self._cache.num_idle:
            block_id = self._cache.evict()
        else:
            raise NoFreeBlocks(f"all {self.num_blocks} KV blocks are held by running sequences")
        self._ref_counts[block_id] = 1
        return block_id

    def match(self, keys: SequenceOf[bytes]) -> list[int]:
        """The cached blocks of the longest prefix of `keys`; they are not held by this call."""
        return self._cache.match(keys) if self.prefix_caching else []

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold each of `block_ids`, found by `match`, once more."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                self._cache.retain(block_id)
            self._ref_counts[block_id] += 1

    def register(self, block_id: int, key: bytes) -> None:
        """Make the held, full block `block_id` findable under `key`; without prefix caching, nothing."""
        if self.prefix_caching:
            self._cache.insert(key, block_id)

    def release(self, block_table: SequenceOf[int]) -> None:
        """Drop one reference to each block of a sequence.

        Tail blocks go first and so are evicted first: a prefix outlives what was built on it.
        """
        for block_id in reversed(block_table):
            count = self._ref_counts[block_id]
            assert count > 0, f"block {block_id} is released but nobody holds it"
            self._ref_counts[block_id] = count - 1
            if count == 1:
                if self._cache.key_of(block_id) is not None:
                    self._cache.retire(block_id)
                else:
                    self._blank.append(block_id)

    def key_of(self, block_id: int) -> bytes | None:
        """The key under which `block_id` is cached, or None."""
        return self._cache.key_of(block_id)

    def check_integrity(self, block_tables: Iterable[SequenceOf[int]]) -> None:
        """Raise AssertionError unless `block_tables`, those of all sequences, account for every reference."""
        expected = [0] * self.num_blocks
        for table in block_tables:
            assert len(set(table)) == len(table), f"a block occurs twice in one block table: {table}"
            for block_id in table:
                expected[block_id] += 1
        blank = set(self._blank)
        assert len(blank) == len(self._blank), f"a block is twice in the free list: {sorted(self._blank)}"
        self._cache.check_integrity()
        for block_id, count in enumerate(self._ref_counts):
            assert count == expected[block_id], (
                f"block {block_id} has reference count {count}, but {expected[block_id]} block tables list it"
            )
            states = (count > 0) + (block_id in blank) + self._cache.is_idle(block_id)
            assert states == 1, (
                f"block {block_id} must be one of held, blank, idle: reference count {count}, "
                f"blank {block_id in blank}, idle {self._cache.is_idle(block_id)}"
            )
            if block_id in blank:
                assert self._cache.key_of(block_id) is None, f"block {block_id} is blank but has a cache key"
