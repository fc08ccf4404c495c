"""What the echo engine answers, token by token: the prompt again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

from engines.base import EngineInfo
from engines.request import FinishReason, GenerationRequest, TokenLogprob, TokenOutput


def answer(request: GenerationRequest, info: EngineInfo) -> Iterator[TokenOutput]:
    """Everything the request is answered, one token at a time."""
    sampling = request.sampling
    prompt_logprobs = None
    if sampling.num_prompt_logprobs is not None:
        later = request.prompt_token_ids[1:]
        prompt_logprobs = (None, *(_logprob(t, sampling.num_prompt_logprobs, info) for t in later))
    max_tokens = min(sampling.max_tokens, info.max_model_len - len(request.prompt_token_ids))
    if max_tokens == 0:  # only the prompt was to be scored
        yield TokenOutput(
            token_ids=(),
            logprobs=None if sampling.num_logprobs is None else (),
            prompt_logprobs=prompt_logprobs,
            finish_reason=FinishReason.LENGTH,
        )
        return
    stop_ids = _stop_ids(request, info)
    for num_generated, token_id in enumerate(islice(_tokens(request, info), max_tokens), 1):
        reason = None
        if token_id in stop_ids:
            reason = FinishReason.STOP
        elif num_generated == max_tokens:
            reason = FinishReason.LENGTH
        if reason is None and num_generated > 1 and sampling.num_logprobs is None:
            yield TokenOutput((token_id,))
            continue
        yield TokenOutput(
            token_ids=(token_id,),
            logprobs=None
            if sampling.num_logprobs is None
            else (_logprob(token_id, sampling.num_logprobs, info),),
            prompt_logprobs=prompt_logprobs if num_generated == 1 else None,
            finish_reason=reason,
        )
        if reason is not None:
            return


def _tokens(request: GenerationRequest, info: EngineInfo) -> Iterator[int]:
    """The endless echo: the prompt, then end-of-sequence or, where that is ignored, the prompt again."""
    sampling = request.sampling
    ends = bool(info.eos_token_ids) and not sampling.ignore_eos
    dropped = info.eos_token_ids if ends else frozenset()
    pattern = [token_id for token_id in request.prompt_token_ids if token_id not in dropped]
    stop_ids = _stop_ids(request, info)
    filler = next((token_id for token_id in range(info.vocab_size) if token_id not in stop_ids), 0)
    for index in count():
        if ends and index >= max(len(pattern), sampling.min_tokens):
            yield min(info.eos_token_ids)
            continue
        token_id = pattern[index % len(pattern)] if pattern else filler
        # Before min_tokens no token may be one that stops.
        yield filler if index < sampling.min_tokens and token_id in stop_ids else token_id


def _stop_ids(request: GenerationRequest, info: EngineInfo) -> frozenset[int]:
    sampling = request.sampling
    return sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else info.eos_token_ids)


def _logprob(token_id: int, num_top: int, info: EngineInfo) -> TokenLogprob:
    """A made-up distribution: `token_id` has probability 1/2, the ids after it 1/4, 1/8 and so on."""
    top = tuple(((token_id + i) % info.vocab_size, -math.log(2.0) * (i + 1)) for i in range(num_top))
    return TokenLogprob(token_id=token_id, logprob=-math.log(2.0), rank=1, top=top)
