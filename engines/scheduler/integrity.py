"""The scheduler's invariants, as checks that name what is broken."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

from engines.scheduler.block_pool import BlockPool
from engines.scheduler.prefix_cache import extend_block_keys
from engines.scheduler.sequence import Sequence, SequenceStatus


def check_sequences(
    sequences: Mapping[str, Sequence], running: SequenceOf[Sequence], waiting: SequenceOf[Sequence]
) -> None:
    """Raise AssertionError unless the queues hold all sequences once, in rank order, in the right state."""
    queued = [sequence.request_id for sequence in (*running, *waiting)]
    assert sorted(queued) == sorted(sequences), (
        f"known {sorted(sequences)}, but in the queues {sorted(queued)}"
    )
    for queue, status in ((running, SequenceStatus.RUNNING), (waiting, SequenceStatus.WAITING)):
        ranks = [sequence.rank for sequence in queue]
        assert ranks == sorted(ranks), f"the {status.value} queue is out of rank order: {ranks}"
        for sequence in queue:
            assert sequence.status is status, f"{_name(sequence)} is in the {status.value} queue"
    for sequence in waiting:
        assert not sequence.block_table, f"{_name(sequence)} waits but holds {sequence.block_table}"
        assert sequence.num_computed_tokens == 0, (
            f"{_name(sequence)} waits but counts {sequence.num_computed_tokens} computed tokens"
        )


def check_blocks(sequence: Sequence, pool: BlockPool) -> None:
    """Raise AssertionError unless the running sequence's block table covers its computed tokens and every
    one of its blocks that is cached is cached under the key of the sequence's own tokens.
    """
    num_computed = sequence.num_computed_tokens
    assert 0 <= num_computed <= sequence.num_tokens, (
        f"{_name(sequence)} counts {num_computed} computed of {sequence.num_tokens} known tokens"
    )
    num_slots = len(sequence.block_table) * pool.block_size
    assert num_slots >= num_computed, f"{_name(sequence)}: {num_computed} tokens in {num_slots} slots"
    assert len(sequence.block_table) <= pool.num_blocks_for(sequence.num_tokens), (
        f"{_name(sequence)} holds {len(sequence.block_table)} blocks for {sequence.num_tokens} tokens"
    )
    num_full = num_computed // pool.block_size
    keys: list[bytes] = []
    extend_block_keys(keys, sequence.token_ids, pool.block_size, num_full)
    for index, block_id in enumerate(sequence.block_table):
        key = pool.key_of(block_id)
        if key is not None:
            assert index < num_full, f"{_name(sequence)}: block {block_id} is cached before it is full"
            assert key == keys[index], (
                f"{_name(sequence)}: block {block_id} is cached under another content's key"
            )
        if index >= num_full:
            assert pool.ref_count(block_id) == 1, f"{_name(sequence)} would write to shared block {block_id}"


def _name(sequence: Sequence) -> str:
    return f"sequence {sequence.request_id!r} ({sequence.status.value})"
