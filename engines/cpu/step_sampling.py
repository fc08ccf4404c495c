"""Choosing the tokens of a step: what is drawn for several sequences is drawn on all threads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engines.cpu.model_runner import SequenceLogits
from engines.cpu.sampler import SequenceSampler
from engines.cpu.token_draw import NOT_FINITE, Draw, Float32Array, draw_tokens
from engines.errors import EngineError, GenerationFailed, GrammarFailed

SampledTokens = tuple[int, ...] | EngineError


class SamplingTask(NamedTuple):
    """A sequence that wants tokens from the rows of `result`, and what ends the sequence.

    A sampler that is not plainly greedy needs the rows' logits.
    """

    result: SequenceLogits
    sampler: SequenceSampler
    stop_ids: frozenset[int]


class _PendingDraw(NamedTuple):
    """The only row of the task at `place`, as its sampler wants it drawn from."""

    place: int
    row: Float32Array
    draw: Draw
    uniform: float


def non_finite_logits() -> GenerationFailed:
    """What a sequence ends with whose logits are not all numbers."""
    return GenerationFailed(
        "the model produced NaN or infinite logits for this request; "
        "the checkpoint's weights or scales are likely damaged (check them with `nybble inspect`)"
    )


def sample_step(tasks: Sequence[SamplingTask]) -> list[SampledTokens]:
    """The next tokens of each task, or what it fails with; samplers have observed them."""
    sampled: list[SampledTokens] = []
    pending: list[_PendingDraw] = []
    for index, task in enumerate(tasks):
        try:
            draw = _pending_draw(index, task)
            if draw is None:
                sampled.append(_sample_rows(task))
            else:
                pending.append(draw)
                sampled.append(())  # until it is drawn
        except GrammarFailed as error:
            sampled.append(error)
    if not pending:
        return sampled
    drawn = draw_tokens([(draw.row, draw.draw, draw.uniform) for draw in pending])
    for draw, token_id in zip(pending, drawn, strict=True):
        try:
            tasks[draw.place].sampler.observe(token_id)
            sampled[draw.place] = (token_id,)
        except GrammarFailed as error:
            sampled[draw.place] = error
    return sampled


def _pending_draw(place: int, task: SamplingTask) -> _PendingDraw | None:
    """For a task whose one token is drawn; with drafts a row's draw waits for the rows before it."""
    result, sampler = task.result, task.sampler
    if sampler.draw is None or result.scheduled.draft_token_ids or result.likeliest[0] == NOT_FINITE:
        return None
    assert result.following is not None
    return _PendingDraw(place, sampler.adjusted(result.following[0]), sampler.draw, sampler.uniform())


def _sample_rows(task: SamplingTask) -> SampledTokens:
    """A token from each row, up to the first that is not the one guessed, or ends the sequence.

    A token is drawn as it would be without drafts: guesses change how fast tokens come, never which.
    """
    result, sampler = task.result, task.sampler
    drafts = result.scheduled.draft_token_ids
    token_ids: list[int] = []
    for place, likeliest_id in enumerate(result.likeliest):
        if likeliest_id == NOT_FINITE:
            return non_finite_logits()
        token_id = likeliest_id
        if not sampler.is_plain_greedy:
            assert result.following is not None
            token_id = sampler.sample(result.following[place])
        sampler.observe(token_id)
        token_ids.append(token_id)
        if place == len(drafts) or token_id != drafts[place] or token_id in task.stop_ids:
            break
    return tuple(token_ids)
