"""The engine without threads or asyncio: requests in, one step at a time, outputs out."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np

from engines.base import EngineInfo, EngineStats, StepKind
from engines.cpu.logprobs import token_logprob
from engines.cpu.model_runner import ModelRunner, SequenceLogits
from engines.cpu.prefill_cost import PrefillWork
from engines.cpu.prefill_pacer import PrefillPacer
from engines.cpu.sampler import SequenceSampler
from engines.cpu.speculation.speculator import Speculator
from engines.cpu.step_sampling import SampledTokens, SamplingTask, non_finite_logits, sample_step
from engines.cpu.step_times import StepTimes, prefill_chunks, step_kind
from engines.errors import EngineError
from engines.grammar.constraint import Constraint
from engines.request import FinishReason, GenerationRequest, SequenceTiming, TokenLogprob, TokenOutput
from engines.scheduler import Batch, Scheduler, Sequence
from engines.sequence_clock import SequenceClock

StepOutput = tuple[str, TokenOutput | EngineError]


@dataclass(slots=True)
class _Generation:
    """What the engine keeps of a sequence beside the scheduler's own state."""

    sequence: Sequence
    sampler: SequenceSampler
    stop_ids: frozenset[int]
    clock: SequenceClock
    prompt_logprobs: list[TokenLogprob | None] | None = field(default=None)


class EngineCore:
    """Scheduler, model runner and samplers of one model. Owned by one thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        info: EngineInfo,
        *,
        speculator: Speculator | None = None,
        pacer: PrefillPacer | None = None,
        check_integrity: bool = False,
    ) -> None:
        self.info = info
        self._scheduler = scheduler
        self._runner = runner
        self._speculator = speculator
        self._pacer = pacer
        self._check_integrity = check_integrity
        self._generations: dict[str, _Generation] = {}
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._step_times = StepTimes()

    def use_speculator(self, speculator: Speculator | None) -> None:
        """Guess with another speculator, or not at all, from the next step on."""
        self._speculator = speculator

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._generations)

    def add(
        self,
        request: GenerationRequest,
        submitted_at: float | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Queue a checked request. Raises PromptTooLong when it could never fit the KV cache.

        `submitted_at` is the `time.perf_counter()` from which its time in the queue counts; None is now.
        `constraint` is the beginning of the request's grammar, if it has one.
        """
        clock = SequenceClock(time.perf_counter() if submitted_at is None else submitted_at)
        sequence = self._scheduler.add(request)
        sampling = request.sampling
        eos_ids = frozenset() if sampling.ignore_eos else self.info.eos_token_ids
        stop_ids = eos_ids | sampling.stop_token_ids
        sampler = SequenceSampler(
            sampling, request.prompt_token_ids, stop_ids, self.info.vocab_size, constraint
        )
        prompt_logprobs: list[TokenLogprob | None] | None = None
        if sampling.num_prompt_logprobs is not None:
            prompt_logprobs = [None]
        self._generations[request.request_id] = _Generation(
            sequence, sampler, stop_ids, clock, prompt_logprobs
        )

    def abort(self, request_id: str) -> TokenOutput | None:
        """Drop a request and free what it holds; its last output, None when there is none of that id."""
        generation = self._generations.get(request_id)
        if generation is None:
            return None
        self._end(generation.sequence)
        return TokenOutput((), finish_reason=FinishReason.ABORT, timing=_timing(generation))

    def step(self) -> list[StepOutput]:
        """Run one batch and return what it gave each sequence that got a token or ended."""
        began = time.perf_counter()
        batch = self._schedule()
        outputs: list[StepOutput] = []
        if batch.scheduled:
            for chunk in batch:
                self._generations[chunk.sequence.request_id].clock.start(began)
            prefills = prefill_chunks(batch)
            num_decodes = len(batch) - len(prefills)
            kind = step_kind(num_decodes, len(batch))
            results = self._runner.run(batch, wants_logits=self._wants_logits(batch))
            sampled = self._sample(results)
            tokens = {
                result.scheduled.sequence.request_id: token_ids
                for result, token_ids in zip(results, sampled, strict=True)
                if isinstance(token_ids, tuple)
            }
            self._scheduler.complete(batch, tokens)
            seconds = time.perf_counter() - began
            if self._speculator is not None and kind is StepKind.DECODE:
                self._speculator.end_step(batch, tokens, seconds)
            self._learn_pace(batch, num_decodes, PrefillWork.of(prefills), seconds)
            for result, token_ids in zip(results, sampled, strict=True):
                outputs.extend(self._emit(result, token_ids))
            self._step_times.record(kind, time.perf_counter() - began)
        self._num_steps += 1
        if self._check_integrity:
            self._scheduler.check_integrity()
        return outputs

    def _schedule(self) -> Batch:
        pace = None if self._pacer is None else self._pacer.max_prefill_tokens
        if self._speculator is None:
            return self._scheduler.schedule(None, pace)
        self._speculator.begin_step(self._scheduler.stats.num_running)
        return self._scheduler.schedule(self._speculator.draft, pace)

    def _wants_logits(self, batch: Batch) -> bool:
        """Whether the likeliest tokens alone will not do for some sequence."""
        for chunk in batch:
            sequence = chunk.sequence
            if sequence.wants_prompt_logits:
                return True
            if chunk.needs_logits and (
                sequence.request.sampling.num_logprobs is not None
                or not self._generations[sequence.request_id].sampler.is_plain_greedy
            ):
                return True
        return False

    def _learn_pace(self, batch: Batch, num_decodes: int, prefill: PrefillWork, seconds: float) -> None:
        """Let the pacer know how long the step took, unless drafts made it longer."""
        if self._pacer is not None and not any(chunk.draft_token_ids for chunk in batch):
            self._pacer.record(num_decodes, prefill, seconds)

    def stats(self) -> EngineStats:
        """Gauges and totals as of now."""
        stats = self._scheduler.stats
        return EngineStats(
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            num_blocks_used=stats.num_blocks_used,
            num_blocks_total=stats.num_blocks_total,
            num_preemptions_total=stats.num_preemptions_total,
            num_prompt_tokens_total=stats.num_prompt_tokens_total,
            num_cached_prompt_tokens_total=stats.num_cached_prompt_tokens_total,
            num_generated_tokens_total=self._num_generated_tokens,
            num_steps_total=self._num_steps,
            num_draft_tokens_total=0 if self._speculator is None else self._speculator.num_drafts_total,
            num_accepted_draft_tokens_total=(
                0 if self._speculator is None else self._speculator.num_confirmed_total
            ),
            step_seconds=self._step_times.snapshot(),
        )

    def _sample(self, results: SequenceOf[SequenceLogits]) -> list[SampledTokens | None]:
        """The next tokens by result; None when it is still being prefilled or wants no token."""
        sampled: list[SampledTokens | None] = [None] * len(results)
        tasks: dict[int, SamplingTask] = {}
        for index, result in enumerate(results):
            sequence = result.scheduled.sequence
            generation = self._generations[sequence.request_id]
            if result.prompt is not None and generation.prompt_logprobs is not None:
                if not np.isfinite(result.prompt).all():
                    sampled[index] = non_finite_logits()
                    continue
                self._collect_prompt_logprobs(generation, result)
            if result.likeliest and sequence.request.sampling.max_tokens > 0:
                tasks[index] = SamplingTask(result, generation.sampler, generation.stop_ids)
        for index, tokens in zip(tasks, sample_step(list(tasks.values())), strict=True):
            sampled[index] = tokens
        return sampled

    def _collect_prompt_logprobs(self, generation: _Generation, result: SequenceLogits) -> None:
        """The row of position p judges the prompt token at p + 1."""
        assert result.prompt is not None
        assert generation.prompt_logprobs is not None
        sequence = generation.sequence
        num_top = sequence.request.sampling.num_prompt_logprobs or 0
        for offset, row in enumerate(result.prompt):
            position = result.scheduled.start + offset + 1
            if position == len(generation.prompt_logprobs) and position < sequence.num_prompt_tokens:
                token_id = sequence.token_ids[position]
                generation.prompt_logprobs.append(token_logprob(row, token_id, num_top))

    def _emit(self, result: SequenceLogits, token_ids: SampledTokens | None) -> list[StepOutput]:
        sequence = result.scheduled.sequence
        request_id, sampling = sequence.request_id, sequence.request.sampling
        generation = self._generations[request_id]
        if isinstance(token_ids, EngineError):
            self._end(sequence)
            return [(request_id, token_ids)]
        if token_ids is None:
            if not result.likeliest:
                return []
            return [self._finish(sequence, FinishReason.LENGTH)]
        self._num_generated_tokens += len(token_ids)
        logprobs = None
        if sampling.num_logprobs is not None:
            assert result.following is not None
            logprobs = tuple(
                token_logprob(row, token_id, sampling.num_logprobs)
                for row, token_id in zip(result.following, token_ids, strict=False)
            )
        reason = self._finish_reason(generation, token_ids[-1])
        is_first = generation.clock.first_token(time.perf_counter())
        output = TokenOutput(
            token_ids,
            logprobs,
            self._take_prompt_logprobs(generation),
            reason,
            sequence.num_cached_tokens,
            _timing(generation) if is_first or reason is not None else None,
        )
        if reason is not None:
            self._end(sequence)
        return [(request_id, output)]

    def _finish_reason(self, generation: _Generation, token_id: int) -> FinishReason | None:
        sequence = generation.sequence
        if token_id in generation.stop_ids:
            return FinishReason.STOP
        if (
            self._scheduler.is_full(sequence)
            or sequence.num_generated_tokens >= sequence.request.sampling.max_tokens
        ):
            return FinishReason.LENGTH
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> StepOutput:
        """End a sequence that got no token in this step."""
        generation = self._generations[sequence.request_id]
        self._end(sequence)
        prompt_logprobs = self._take_prompt_logprobs(generation)
        return sequence.request_id, TokenOutput(
            (), None, prompt_logprobs, reason, sequence.num_cached_tokens, _timing(generation)
        )

    def _end(self, sequence: Sequence) -> None:
        """Free what the sequence holds and forget it."""
        self._scheduler.finish(sequence)
        del self._generations[sequence.request_id]
        if self._speculator is not None:
            self._speculator.forget(sequence.request_id)

    @staticmethod
    def _take_prompt_logprobs(generation: _Generation) -> tuple[TokenLogprob | None, ...] | None:
        """The prompt's entries, with the first output only."""
        entries, generation.prompt_logprobs = generation.prompt_logprobs, None
        return None if entries is None else tuple(entries)


def _timing(generation: _Generation) -> SequenceTiming:
    return generation.clock.timing(time.perf_counter(), generation.sequence.num_preemptions)
