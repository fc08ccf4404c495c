"""Continuous batching with chunked prefill, prefix reuse and preemption by recomputation.

The rules, in order of weight:

1. Rank is (priority, arrival). The sequence of the smallest rank makes progress in every step.
2. Each running sequence that decodes gets its token before any prefill gets a chunk, so that a long prompt
   delays the others by a chunk only; the prefills share what is left of the step's budget, or as much of it
   as the caller's pace allows beside decodes, in rank order.
3. A waiting sequence is admitted, in rank order and none before its turn, when a slot is free and the blocks
   that all running sequences and it need for the tokens known now, and one more each, are free.
4. When a running sequence finds no free block, the sequence of the largest rank is preempted: its blocks are
   freed and it waits, with its generated tokens and its arrival number, to be computed again. The sequence
   that is itself the last in rank keeps what it has and skips the step instead. A waiting sequence preempts
   running ones of a worse priority, never of its own.
5. A sequence ends at `max_sequence_len` = min(max_model_len, num_blocks * block_size) tokens, so that any
   sequence, running alone, can be finished: the pool never fills up under a lonely one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf

from engines.errors import InvalidRequest, PromptTooLong
from engines.request import GenerationRequest
from engines.scheduler.batch import Batch, ScheduledSequence, StepPlan
from engines.scheduler.block_pool import BlockPool
from engines.scheduler.block_tables import BlockTables
from engines.scheduler.config import SchedulerConfig, SchedulerStats
from engines.scheduler.integrity import check_blocks, check_sequences
from engines.scheduler.sequence import Sequence, SequenceStatus

Drafter = Callable[[Sequence, int], SequenceOf[int]]
"""Guesses at most that many tokens to follow a sequence's newest one; called for decoding sequences only."""

Pace = Callable[[int, int], int]
"""From the number of decoding sequences, and the position at which the first prefill goes on, to the tokens
that may be prefilled in the same step, at least 1."""


class Scheduler:
    """Owns all sequences and the block pool. Not thread-safe: one caller at a time.

    A step is `schedule()`, the model's work, `complete(batch, sampled)`, and `finish` for each sequence that
    has ended. `add`, `abort` and `finish` may also be called while the model works on a batch, provided that
    it does not look at block tables any more: a finished sequence has none.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size, prefix_caching=config.prefix_caching)
        self._tables = BlockTables(self.pool, config)
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # in rank order
        self._running: list[Sequence] = []  # in rank order
        self._in_flight: Batch | None = None
        self._num_added = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_cached_prompt_tokens = 0

    # -- requests in and out ------------------------------------------------------------------------------

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a request.

        Raises InvalidRequest for a request id in use and PromptTooLong for a prompt that, with the first
        token asked for, exceeds `max_sequence_len`; fewer than `max_tokens` may fit after the prompt.
        """
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens == 0:
            raise InvalidRequest("the prompt has no tokens; expected at least one", param="prompt")
        if num_prompt_tokens + min(request.sampling.max_tokens, 1) > self.config.max_sequence_len:
            raise PromptTooLong(
                f"the prompt has {num_prompt_tokens} tokens, but a sequence can have at most "
                f"{self.config.max_sequence_len} tokens here, generated ones included (context "
                f"{self.config.max_model_len}, KV cache {self.config.num_blocks * self.config.block_size}); "
                "shorten the prompt or give the KV cache more memory",
                param="prompt",
            )
        sequence = Sequence(request, arrival=self._num_added)
        self._num_added += 1
        self._sequences[sequence.request_id] = sequence
        insort(self._waiting, sequence, key=_rank)
        return sequence

    def get(self, request_id: str) -> Sequence | None:
        """The unfinished sequence of that id, or None."""
        return self._sequences.get(request_id)

    def abort(self, request_id: str) -> Sequence | None:
        """Finish the sequence of that id and return it; None when there is no unfinished one."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.finish(sequence)
        return sequence

    def finish(self, sequence: Sequence) -> None:
        """Take `sequence` out and free its slot and blocks; a finished one is left alone.

        Blocks given back while a batch is in flight are safe from reuse until the next `schedule`.
        """
        if sequence.is_finished:
            return
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
            self._tables.release(sequence)
        else:
            self._waiting.remove(sequence)
        del self._sequences[sequence.request_id]
        sequence.status = SequenceStatus.FINISHED

    @property
    def has_unfinished(self) -> bool:
        """Whether `schedule` would find work."""
        return bool(self._sequences)

    def is_full(self, sequence: Sequence) -> bool:
        """Whether `sequence` has reached `max_sequence_len`; the caller must then finish it (LENGTH)."""
        return sequence.num_tokens >= self.config.max_sequence_len

    # -- one step -----------------------------------------------------------------------------------------

    def schedule(self, drafter: Drafter | None = None, pace: Pace | None = None) -> Batch:
        """Decide the next step. The batch is empty only when there is no unfinished sequence.

        `pace` says how many tokens may be prefilled beside a number of decodes; without decodes, as many as
        the budget allows.
        When all of them decode, what is left of the budget may go to drafts. The previous batch must have
        been given to `complete`.
        """
        assert self._in_flight is None, "schedule() called before the previous batch was completed"
        plan = StepPlan(self.config.max_num_batched_tokens)
        self._free_slot_for_priority(plan)
        for sequence in [running for running in self._running if running.num_uncomputed_tokens <= 1]:
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted by one before it
            assert sequence.num_uncomputed_tokens == 1, (
                f"sequence {sequence.request_id!r} has nothing left to compute: it was neither given a token "
                "nor finished"
            )
            self._schedule_chunk(sequence, plan)
        num_held_back = 0
        if pace is not None and (num_decodes := plan.num_chunks):
            start = self._next_prefill_start()
            if start is not None:
                num_held_back = max(0, plan.budget_left - pace(num_decodes, start))
        plan.budget_left -= num_held_back
        self._schedule_prefills(plan)
        plan.budget_left += num_held_back
        if drafter is not None and (decodes := plan.decodes_alone()):
            for sequence in decodes:
                self._schedule_drafts(sequence, plan, drafter)
        batch = plan.batch()
        self._in_flight = batch if batch.scheduled else None
        return batch

    def complete(self, batch: Batch, sampled: Mapping[str, SequenceOf[int]]) -> None:
        """Record that `batch` has been computed and append the tokens sampled from it, by request id.

        Only sequences with `needs_logits` may get tokens: one, and one more for each of their drafts that
        came true; one that gets none must be finished before the next step. Sequences finished since
        `schedule` are skipped.
        """
        assert batch is self._in_flight or not batch.scheduled, "this batch is not the one in flight"
        self._in_flight = None
        for chunk in batch:
            if not chunk.sequence.is_finished:
                self._complete_chunk(chunk, sampled.get(chunk.sequence.request_id, ()))

    def _complete_chunk(self, chunk: ScheduledSequence, token_ids: SequenceOf[int]) -> None:
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.known_end
        if token_ids:
            name = f"sequence {sequence.request_id!r}"
            assert chunk.needs_logits, f"{name} was given a token in mid-prompt"
            confirmed = tuple(token_ids[:-1])
            assert confirmed == chunk.draft_token_ids[: len(confirmed)], (
                f"{name} was given {list(token_ids)} where {list(chunk.draft_token_ids)} had been guessed"
            )
            assert sequence.num_tokens + len(token_ids) <= self.config.max_sequence_len, (
                f"{name} grows beyond the context"
            )
            sequence.num_computed_tokens += len(confirmed)
            sequence.token_ids.extend(token_ids)
        if chunk.draft_token_ids:
            self._tables.trim(sequence)
        self._tables.register_full(sequence)

    def _schedule_drafts(self, sequence: Sequence, plan: StepPlan, drafter: Drafter) -> None:
        """Let the step judge guesses, as far as budget, context, request and free blocks allow."""
        num_missing = sequence.request.sampling.max_tokens - sequence.num_generated_tokens
        num_slots = (len(sequence.block_table) + self.pool.num_free) * self.pool.block_size
        limit = min(
            plan.budget_left,
            num_missing - 1,
            self.config.max_sequence_len - sequence.num_tokens - 1,
            num_slots - sequence.num_tokens,
        )
        drafts = drafter(sequence, limit)[:limit] if limit > 0 else ()
        if not drafts:
            return
        self._tables.grow(sequence, sequence.num_tokens + len(drafts))
        plan.add_drafts(sequence, drafts)

    def _schedule_prefills(self, plan: StepPlan) -> None:
        """Give what is left of the budget to running prefills and to admissions, in rank order."""
        prefills = [sequence for sequence in self._running if sequence.num_uncomputed_tokens > 1]
        for sequence in prefills:
            self._admit_ahead_of(sequence, plan)
            if plan.budget_left == 0:
                return
            if sequence.status is SequenceStatus.RUNNING:
                self._schedule_chunk(sequence, plan)
        self._admit_ahead_of(None, plan)

    def _next_prefill_start(self) -> int | None:
        """From which position on the prefill of the smallest rank would be computed; None without any."""
        prefills = [sequence for sequence in self._running if sequence.num_uncomputed_tokens > 1]
        if prefills and not (self._waiting and self._waiting[0].rank < prefills[0].rank):
            return prefills[0].num_computed_tokens
        if self._waiting:
            return len(self._tables.reusable(self._waiting[0])) * self.pool.block_size
        return None

    def _admit_ahead_of(self, limit: Sequence | None, plan: StepPlan) -> None:
        """Admit waiting sequences, those that rank before `limit` only if it is given."""
        while self._waiting and plan.budget_left > 0:
            sequence = self._waiting[0]
            if limit is not None and sequence.rank > limit.rank:
                return
            if not self._admit(sequence, plan):
                return
            self._schedule_chunk(sequence, plan)

    def _schedule_chunk(self, sequence: Sequence, plan: StepPlan) -> None:
        """Plan as many of the running sequence's uncomputed tokens as budget and blocks allow.

        Preempts sequences that rank after it; when there are none left, the chunk shrinks, down to nothing.
        """
        pool, block_table = self.pool, sequence.block_table
        end = sequence.num_computed_tokens + min(plan.budget_left, sequence.num_uncomputed_tokens)
        while pool.num_blocks_for(end) - len(block_table) > pool.num_free:
            if self._running[-1] is sequence:
                end = (len(block_table) + pool.num_free) * pool.block_size
                break
            self._preempt(self._running[-1], plan)
        self._tables.grow(sequence, end)
        if end > sequence.num_computed_tokens:
            plan.add(sequence, end - sequence.num_computed_tokens)

    # -- admission and preemption -------------------------------------------------------------------------

    def _admit(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Give the first waiting sequence a slot and the cached blocks of its prefix, if there is room."""
        while not self._has_room_for(sequence):
            if not self._running or self._running[-1].request.priority <= sequence.request.priority:
                return False
            self._preempt(self._running[-1], plan)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_rank)
        sequence.status = SequenceStatus.RUNNING
        self._tables.begin(sequence)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._num_prompt_tokens += sequence.num_prompt_tokens
            self._num_cached_prompt_tokens += sequence.num_cached_tokens
        return True

    def _has_room_for(self, sequence: Sequence) -> bool:
        """Whether a slot is free, and blocks for what all running sequences and this one need next.

        Counting one token beyond the known ones keeps an admission from causing a preemption right after it.
        """
        if len(self._running) >= self.config.max_num_seqs:
            return False
        num_shared_live = sum(self.pool.ref_count(block) > 0 for block in self._tables.reusable(sequence))
        num_needed = sum(self._tables.num_lacking(running) for running in self._running)
        num_needed += self._tables.num_lacking(sequence) - num_shared_live
        return num_needed <= self.pool.num_free

    def _free_slot_for_priority(self, plan: StepPlan) -> None:
        """When all slots are taken, a waiting sequence of better priority gets the last one in rank.

        Done before the decodes, so that they leave it at least one token of the budget.
        """
        if self._waiting and len(self._running) >= self.config.max_num_seqs:
            last = self._running[-1]
            if self._waiting[0].request.priority < last.request.priority:
                self._preempt(last, plan)

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        """Free the running sequence's slot and blocks; it waits to be computed again."""
        plan.withdraw(sequence)
        self._running.remove(sequence)
        self._tables.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._num_preemptions += 1
        insort(self._waiting, sequence, key=_rank)

    # -- observation --------------------------------------------------------------------------------------

    @property
    def stats(self) -> SchedulerStats:
        """Numbers of sequences and blocks now, and totals since the start."""
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks_used=self.pool.num_used,
            num_blocks_total=self.pool.num_blocks,
            num_preemptions_total=self._num_preemptions,
            num_prompt_tokens_total=self._num_prompt_tokens,
            num_cached_prompt_tokens_total=self._num_cached_prompt_tokens,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError, saying what is wrong, unless every invariant holds. Slow; for tests."""
        assert len(self._running) <= self.config.max_num_seqs, (
            f"{len(self._running)} sequences run, max_num_seqs is {self.config.max_num_seqs}"
        )
        check_sequences(self._sequences, self._running, self._waiting)
        self.pool.check_integrity(sequence.block_table for sequence in self._running)
        for sequence in self._running:
            check_blocks(sequence, self.pool)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
