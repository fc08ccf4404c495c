"""A model that shows every misplaced KV entry: a token is a digest of the prefix as read from the blocks.

`FakeModel` keeps a simulated KV store and fails at once when it reads a slot that was never written or holds
another position; another sequence's token in it changes everything generated from there on.
"""

from __future__ import annotations

from hashlib import blake2b

from engines.request import GenerationRequest
from engines.scheduler import Batch, Drafter, ScheduledSequence, Scheduler, Sequence

VOCAB_SIZE = 1000


def next_token(prefix: list[int]) -> int:
    """The token after `prefix`, whatever the batch or the block size."""
    digest = blake2b(repr(prefix).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def tokens_alone(request: GenerationRequest, max_sequence_len: int) -> list[int]:
    """The slow simple model: the tokens generated when nothing else exists."""
    tokens = list(request.prompt_token_ids)
    num_generated = min(request.sampling.max_tokens, max_sequence_len - len(tokens))
    for _ in range(num_generated):
        tokens.append(next_token(tokens))
    return tokens[len(request.prompt_token_ids) :]


class FakeModel:
    """Writes (token, position) pairs to block slots and reads the prefix back through the block table."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._slots: list[list[tuple[int, int] | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._block_size = block_size

    def step(self, batch: Batch) -> dict[str, tuple[int, ...]]:
        """Write all chunks, then sample where logits are needed, and after each draft that was right."""
        for chunk in batch:
            for position, token_id in zip(range(chunk.start, chunk.end), chunk.token_ids, strict=True):
                block = self._slots[chunk.sequence.block_table[position // self._block_size]]
                block[position % self._block_size] = (token_id, position)
        return {chunk.sequence.request_id: self._sample(chunk) for chunk in batch if chunk.needs_logits}

    def _sample(self, chunk: ScheduledSequence) -> tuple[int, ...]:
        token_ids = [next_token(self._read(chunk.sequence, chunk.known_end))]
        for number, draft in enumerate(chunk.draft_token_ids, 1):
            if draft != token_ids[-1]:
                break
            token_ids.append(next_token(self._read(chunk.sequence, chunk.known_end + number)))
        return tuple(token_ids)

    def _read(self, sequence: Sequence, num_tokens: int) -> list[int]:
        prefix = []
        for position in range(num_tokens):
            entry = self._slots[sequence.block_table[position // self._block_size]][
                position % self._block_size
            ]
            assert entry is not None
            assert entry[1] == position
            prefix.append(entry[0])
        return prefix


def run_step(scheduler: Scheduler, model: FakeModel, drafter: Drafter | None = None) -> Batch:
    """One whole step: schedule, compute, complete, finish what has ended; integrity checked throughout."""
    batch = scheduler.schedule(drafter)
    if not any(chunk.draft_token_ids for chunk in batch):
        scheduler.check_integrity()
    scheduler.complete(batch, model.step(batch))
    scheduler.check_integrity()
    for chunk in batch:
        sequence = chunk.sequence
        if chunk.needs_logits and (
            sequence.num_generated_tokens >= sequence.request.sampling.max_tokens
            or scheduler.is_full(sequence)
        ):
            scheduler.finish(sequence)
    scheduler.check_integrity()
    return batch
