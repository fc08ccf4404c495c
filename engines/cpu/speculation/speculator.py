"""Drafts for the sequences of a step: what to guess, for whom, and how far."""

from __future__ import annotations

from collections.abc import Mapping

from engines.cpu.speculation.ledger import MAX_DRAFTS, SpeculationLedger
from engines.cpu.speculation.prompt_lookup import PromptLookup
from engines.scheduler import Batch, Sequence

_FIRST_CHANCE = 0.6
_MEMORY = 0.8
_PROBE_EVERY = 16  # steps after which a sequence that guesses badly may try again


class _SequenceDrafts:
    """The index of one sequence, and how often its drafts came true of late."""

    def __init__(self) -> None:
        self.lookup = PromptLookup()
        self.chance = _FIRST_CHANCE
        self.num_steps_silent = 0

    def judge(self, num_drafts: int, num_confirmed: int) -> None:
        """Take in the outcome of a step; drafts behind the first wrong one were not judged."""
        for number in range(min(num_drafts, num_confirmed + 1)):
            outcome = 1.0 if number < num_confirmed else 0.0
            self.chance = _MEMORY * self.chance + (1.0 - _MEMORY) * outcome


class Speculator:
    """Guesses from each sequence's own text, as far as the ledger bears it. Owned by the engine core."""

    def __init__(self) -> None:
        self.ledger = SpeculationLedger()
        self.num_drafts_total = 0
        self.num_confirmed_total = 0
        self._sequences: dict[str, _SequenceDrafts] = {}
        self._num_sequences = 0
        self._num_left = 0

    def begin_step(self, num_sequences: int) -> None:
        """A step is about to be scheduled in which `num_sequences` sequences run."""
        self._num_sequences = num_sequences
        self._num_left = self.ledger.num_drafts_allowed(num_sequences)

    def draft(self, sequence: Sequence, limit: int) -> list[int]:
        """Guesses for one sequence of the step (see `engines.scheduler.Drafter`)."""
        if self._num_left == 0:
            return []
        drafts = self._sequences.setdefault(sequence.request_id, _SequenceDrafts())
        depth = self._depth(drafts.chance)
        if depth == 0:
            drafts.num_steps_silent += 1
            if drafts.num_steps_silent < _PROBE_EVERY:
                return []
        drafts.num_steps_silent = 0
        token_ids = drafts.lookup.propose(sequence.token_ids, min(limit, self._num_left, max(1, depth)))
        self._num_left -= len(token_ids)
        return token_ids

    def end_step(self, batch: Batch, sampled: Mapping[str, tuple[int, ...]], seconds: float) -> None:
        """The outcome of a step that only decoded: the tokens each sequence got, and the step's time."""
        num_drafts = num_confirmed = 0
        for chunk in batch:
            sequence = chunk.sequence
            if chunk.draft_token_ids:
                confirmed = max(0, len(sampled.get(sequence.request_id, ())) - 1)
                self._sequences[sequence.request_id].judge(len(chunk.draft_token_ids), confirmed)
                num_drafts += len(chunk.draft_token_ids)
                num_confirmed += confirmed
        if num_drafts == 0 or len(batch) == self._num_sequences:
            self.ledger.record(len(batch), num_drafts, num_confirmed, seconds)
        self.num_drafts_total += num_drafts
        self.num_confirmed_total += num_confirmed

    def forget(self, request_id: str) -> None:
        """The sequence has ended."""
        self._sequences.pop(request_id, None)

    def _depth(self, chance: float) -> int:
        """How many drafts in a row are worth their time: each needs all those before it to come true."""
        depth, compound = 0, chance
        while depth < MAX_DRAFTS and self.ledger.is_worth_it(self._num_sequences, compound):
            depth += 1
            compound *= chance
        return depth
