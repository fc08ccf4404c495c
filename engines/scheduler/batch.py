"""What the scheduler decides for one step."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from engines.scheduler.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """Compute positions `start` .. `start + num_tokens - 1` of `sequence` in this step.

    Blocks for all of them are in the sequence's block table. `needs_logits` is true when the chunk ends with
    the newest known token: the row of that token gives the distribution of the next one.

    `draft_token_ids` are guesses at the tokens after the newest one, the last of the `num_tokens`; the rows
    from the newest known token on judge them.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    needs_logits: bool
    draft_token_ids: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last one computed, drafts included."""
        return self.start + self.num_tokens

    @property
    def known_end(self) -> int:
        """The position after the last known token computed."""
        return self.end - len(self.draft_token_ids)

    @property
    def token_ids(self) -> list[int]:
        """The tokens to feed to the model, `num_tokens` of them."""
        return [*self.sequence.token_ids[self.start : self.known_end], *self.draft_token_ids]


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of one step: decodes first, then chunks of prefill; each sequence occurs once."""

    scheduled: tuple[ScheduledSequence, ...]
    num_tokens: int

    def __iter__(self) -> Iterator[ScheduledSequence]:
        return iter(self.scheduled)

    def __len__(self) -> int:
        return len(self.scheduled)


class StepPlan:
    """A batch under construction, within a budget of tokens."""

    def __init__(self, budget: int) -> None:
        self.budget_left = budget
        self._chunks: dict[Sequence, ScheduledSequence] = {}

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Let the step compute the next `num_tokens` uncomputed tokens of `sequence`."""
        assert 0 < num_tokens <= self.budget_left
        self.budget_left -= num_tokens
        self._chunks[sequence] = ScheduledSequence(
            sequence=sequence,
            start=sequence.num_computed_tokens,
            num_tokens=num_tokens,
            needs_logits=num_tokens == sequence.num_uncomputed_tokens,
        )

    def add_drafts(self, sequence: Sequence, token_ids: SequenceOf[int]) -> None:
        """Let the step also judge guesses at the tokens after the newest one, which it computes already."""
        assert len(token_ids) <= self.budget_left
        self.budget_left -= len(token_ids)
        chunk = self._chunks[sequence]
        self._chunks[sequence] = replace(
            chunk, num_tokens=chunk.num_tokens + len(token_ids), draft_token_ids=tuple(token_ids)
        )

    @property
    def num_chunks(self) -> int:
        """Sequences in the step so far."""
        return len(self._chunks)

    def decodes_alone(self) -> list[Sequence]:
        """The sequences of the step if it computes one newest token of each; none if it prefills too."""
        return list(self._chunks) if all(map(_is_decode, self._chunks.values())) else []

    def withdraw(self, sequence: Sequence) -> None:
        """Take `sequence` out again, if it is in, and give its tokens back to the budget."""
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None:
            self.budget_left += chunk.num_tokens

    def batch(self) -> Batch:
        """The finished plan."""
        scheduled = tuple(self._chunks.values())
        return Batch(scheduled=scheduled, num_tokens=sum(chunk.num_tokens for chunk in scheduled))


def _is_decode(chunk: ScheduledSequence) -> bool:
    return chunk.needs_logits and chunk.num_tokens == 1 and chunk.sequence.num_generated_tokens > 0
