"""From TensorRT-LLM's outputs, which change in place, to our immutable ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.cpu.logprobs import token_logprob as model_token_logprob
from engines.errors import GenerationFailed
from engines.request import FinishReason, TokenLogprob, TokenOutput
from engines.trtllm.sampling import SamplingPlan

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "cancelled": FinishReason.ABORT}


class OutputReader:
    """Reads one RequestOutput each time it has grown: what is new since the last time becomes a TokenOutput.

    The same object comes out of the iterator again and again, with lists that grow, so everything is copied
    at once and counted here; `token_ids_diff` would do, were no update ever skipped.
    """

    def __init__(self, plan: SamplingPlan, *, wants_prompt_logprobs: bool) -> None:
        self._plan = plan
        self._wants_prompt_logprobs = wants_prompt_logprobs
        self._num_read = 0

    def read(self, result: Any) -> TokenOutput | None:
        """What `result` (a `tensorrt_llm.llmapi.RequestOutput`) has gained; None for nothing.

        Raises GenerationFailed for a request the runtime gave up, or an output that cannot be understood.
        """
        error = getattr(result, "error", None)
        if error:
            raise GenerationFailed(f"TensorRT-LLM failed to generate: {error}")
        output = result.outputs[0]
        reason = _finish_reason(output.finish_reason)
        sampling = self._plan.request.sampling
        token_ids = tuple(output.token_ids[self._num_read :])
        logprobs: tuple[TokenLogprob, ...] | None = None
        if sampling.num_logprobs is not None:
            entries = (output.logprobs or ())[self._num_read : self._num_read + len(token_ids)]
            # A token is given out together with its log-probability, which may come a moment later.
            token_ids = token_ids[: len(entries)] if reason is None else token_ids
            if len(entries) < len(token_ids) and reason is not FinishReason.ABORT:
                raise GenerationFailed(
                    f"TensorRT-LLM gave {len(entries)} log-probabilities for {len(token_ids)} tokens"
                )
            token_ids = token_ids[: len(entries)]
            logprobs = tuple(
                token_logprob(entry, token_id, sampling.num_logprobs)
                for entry, token_id in zip(entries, token_ids, strict=True)
            )
        prompt_logprobs = None
        if self._wants_prompt_logprobs and reason not in (None, FinishReason.ABORT):
            prompt_logprobs = self._prompt_logprobs(result)
        if not token_ids and reason is None:
            return None
        self._num_read += len(token_ids)
        return TokenOutput(
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            num_cached_tokens=self._num_cached_tokens(result),
        )

    def _prompt_logprobs(self, result: Any) -> tuple[TokenLogprob | None, ...]:
        prompt = self._plan.request.prompt_token_ids
        num_top = self._plan.request.sampling.num_prompt_logprobs or 0
        if self._plan.reads_prompt_logits:
            return score_prompt(result.context_logits, prompt, self._plan.vocab_size, num_top)
        return map_prompt_logprobs(result.outputs[0].prompt_logprobs, prompt, num_top)

    def _num_cached_tokens(self, result: Any) -> int:
        num_cached = getattr(result, "cached_tokens", None) or 0
        return min(int(num_cached), len(self._plan.request.prompt_token_ids) - 1)


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason is None or reason == "not_finished":
        return None
    if reason == "timeout":
        raise GenerationFailed("TensorRT-LLM gave the request up because it took too long")
    try:
        return _REASONS[reason]
    except KeyError:
        raise GenerationFailed(f"TensorRT-LLM ended the request for an unknown reason, {reason!r}") from None


def token_logprob(entry: Any, token_id: int, num_top: int) -> TokenLogprob:
    """One position: a mapping from token id to Logprob(logprob, rank) with the chosen token among the keys.

    A bare number, as some releases give for the chosen token alone, has no rank; it counts as the likeliest
    only when nothing else is known.
    """
    if not isinstance(entry, Mapping):
        return TokenLogprob(token_id, float(entry), 1)
    chosen = entry.get(token_id)
    if chosen is None:
        raise GenerationFailed(f"TensorRT-LLM gave no log-probability for token {token_id}, which it chose")
    best = sorted(((key, float(value.logprob)) for key, value in entry.items()), key=lambda p: (-p[1], p[0]))
    return TokenLogprob(token_id, float(chosen.logprob), int(chosen.rank or 1), tuple(best[:num_top]))


def map_prompt_logprobs(
    entries: Sequence[Any] | None, prompt_token_ids: tuple[int, ...], num_top: int
) -> tuple[TokenLogprob | None, ...]:
    """One entry for each prompt token, None for the first. Raises GenerationFailed when they do not fit.

    The runtime's list begins with the second prompt token (and may end with the first generated one). That
    is read off the entries, each of which contains the token it is about.
    """
    later = prompt_token_ids[1:]
    for shift in (0, 1):
        candidates = (entries or ())[shift : shift + len(later)]
        if len(candidates) == len(later) and all(
            isinstance(entry, Mapping) and token_id in entry
            for entry, token_id in zip(candidates, later, strict=True)
        ):
            return (
                None,
                *(token_logprob(e, token_id, num_top) for e, token_id in zip(candidates, later, strict=True)),
            )
    raise GenerationFailed(
        f"TensorRT-LLM gave log-probabilities for {len(entries or ())} prompt positions that do not belong "
        f"to the {len(prompt_token_ids)} tokens of the prompt"
    )


def score_prompt(
    logits: Any, prompt_token_ids: tuple[int, ...], vocab_size: int, num_top: int
) -> tuple[TokenLogprob | None, ...]:
    """The prompt's log-probabilities from its logits, a torch tensor [num_prompt_tokens, >= vocab_size] of
    any float dtype on any device. Raises GenerationFailed when there are none, or not one row for each token.

    Row i is what the model said after token i; a vocabulary that is no multiple of the ranks is padded.
    """
    rows = None if logits is None else np.asarray(logits.float().cpu().numpy())
    if rows is None or rows.ndim != 2 or len(rows) != len(prompt_token_ids) or rows.shape[1] < vocab_size:
        got = "none" if rows is None else f"an array {rows.shape}"
        raise GenerationFailed(
            f"TensorRT-LLM gave no usable logits of the prompt: got {got}, expected "
            f"({len(prompt_token_ids)}, {vocab_size})"
        )
    entries = (
        model_token_logprob(row[:vocab_size], token_id, num_top)
        for row, token_id in zip(rows, prompt_token_ids[1:], strict=False)
    )
    return (None, *entries)
