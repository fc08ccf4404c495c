"""The checks every engine makes before it accepts a request.

`param` of the errors uses the names of the HTTP API, which the caller of the service knows.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from engines.base import EngineInfo
from engines.errors import InvalidRequest, PromptTooLong, UnsupportedParameter
from engines.request import GenerationRequest, SamplingParams

_SEED_MIN, _SEED_MAX = -(2**63), 2**63 - 1
_BIAS_LIMIT = 100.0
_PENALTY_LIMIT = 2.0


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise unless an engine described by `info` can serve `request`.

    The prompt and the first token asked for must fit `info.max_model_len`. `max_tokens` may go beyond that:
    the sequence then ends with FinishReason.LENGTH when the context is full.

    Raises InvalidRequest, PromptTooLong (context) or UnsupportedParameter (prompt log-probabilities or a kind
    of grammar where the engine has none). Whether a grammar's text is sound is for the engine to say.
    """
    _check_prompt(request, info)
    sampling = request.sampling
    _check_lengths(sampling)
    _check_distribution(sampling)
    _check_logprobs(sampling, info)
    _check_grammar(sampling, info)
    _check_token_ids(sampling.stop_token_ids, info.vocab_size, "stop_token_ids")
    _check_token_ids(sampling.logit_bias, info.vocab_size, "logit_bias")
    for token_id, bias in sampling.logit_bias.items():
        if not -_BIAS_LIMIT <= bias <= _BIAS_LIMIT:
            raise InvalidRequest(
                f"logit_bias of token {token_id} is {bias}; expected -100 to 100", param="logit_bias"
            )


def _check_prompt(request: GenerationRequest, info: EngineInfo) -> None:
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens; expected at least one", param="prompt")
    if num_prompt_tokens + min(request.sampling.max_tokens, 1) > info.max_model_len:
        raise PromptTooLong(
            f"the prompt has {num_prompt_tokens} tokens, but the context holds {info.max_model_len} tokens, "
            "prompt and generated together; shorten the prompt",
            param="prompt",
        )
    _check_token_ids(request.prompt_token_ids, info.vocab_size, "prompt")


def _check_lengths(sampling: SamplingParams) -> None:
    if sampling.max_tokens < 1 and (sampling.max_tokens < 0 or sampling.num_prompt_logprobs is None):
        raise InvalidRequest(
            f"max_tokens is {sampling.max_tokens}; expected at least 1, or 0 together with prompt_logprobs",
            param="max_tokens",
        )
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}; expected 0 to max_tokens, {sampling.max_tokens}",
            param="min_tokens",
        )


def _check_distribution(sampling: SamplingParams) -> None:
    # Written so that NaN fails each of them.
    _require(
        0 <= sampling.temperature < math.inf, "temperature", sampling.temperature, "a finite number >= 0"
    )
    _require(sampling.top_k >= 0, "top_k", sampling.top_k, "0 (off) or more")
    _require(0 < sampling.top_p <= 1, "top_p", sampling.top_p, "more than 0 and at most 1")
    _require(0 <= sampling.min_p <= 1, "min_p", sampling.min_p, "0 to 1")
    for name in ("presence_penalty", "frequency_penalty"):
        penalty: float = getattr(sampling, name)
        _require(-_PENALTY_LIMIT <= penalty <= _PENALTY_LIMIT, name, penalty, "-2 to 2")
    _require(
        0 < sampling.repetition_penalty < math.inf,
        "repetition_penalty",
        sampling.repetition_penalty,
        "a finite number > 0 (1 is off)",
    )
    if sampling.seed is not None:
        _require(_SEED_MIN <= sampling.seed <= _SEED_MAX, "seed", sampling.seed, "a 64-bit signed integer")


def _check_logprobs(sampling: SamplingParams, info: EngineInfo) -> None:
    for name, number in (
        ("logprobs", sampling.num_logprobs),
        ("prompt_logprobs", sampling.num_prompt_logprobs),
    ):
        if number is not None:
            _require(0 <= number <= info.max_num_logprobs, name, number, f"0 to {info.max_num_logprobs}")
    if sampling.num_prompt_logprobs is not None and not info.supports_prompt_logprobs:
        raise UnsupportedParameter(
            f"prompt_logprobs is {sampling.num_prompt_logprobs}, but the engine {info.engine!r} has no "
            "log-probabilities of prompts; leave it out",
            param="prompt_logprobs",
        )


def _check_grammar(sampling: SamplingParams, info: EngineInfo) -> None:
    grammar = sampling.grammar
    if grammar is None:
        return
    if grammar.kind not in info.grammar_kinds:
        known = ", ".join(sorted(kind.value for kind in info.grammar_kinds)) or "none"
        raise UnsupportedParameter(
            f"the engine {info.engine!r} cannot hold its output to a grammar of the kind "
            f"{grammar.kind.value!r}; it knows: {known}",
            param="grammar",
        )
    if sampling.ignore_eos:
        raise InvalidRequest(
            "ignore_eos is set together with a grammar, which says itself where the text ends; "
            "leave one of them out",
            param="ignore_eos",
        )


def _check_token_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(
            f"{param} has token id {wrong}; expected ids from 0 to {vocab_size - 1}", param=param
        )


def _require(condition: bool, param: str, got: float, expected: str) -> None:
    if not condition:
        raise InvalidRequest(f"{param} is {got}; expected {expected}", param=param)
