"""From the wire's fields to the engine's SamplingParams, with the checks that need the model."""

from __future__ import annotations

from engines.base import EngineInfo
from engines.request import Grammar, SamplingParams
from service.errors import BadRequest, ContextLengthExceeded
from service.generation_config import OPENAI_DEFAULTS, SamplingDefaults
from service.protocol.generation import INT64_MAX, GenerationFields


def sampling_params(
    fields: GenerationFields,
    info: EngineInfo,
    *,
    max_tokens: int,
    choice: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
    defaults: SamplingDefaults = OPENAI_DEFAULTS,
) -> SamplingParams:
    """The parameters of one answer. Answer `choice` of n uses `seed + choice`, so that answers differ.

    `defaults` hold for what the request leaves open.

    Raises BadRequest.
    """
    min_tokens = fields.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequest(
            f"min_tokens is {min_tokens}, more than max_tokens ({max_tokens}).", param="min_tokens"
        )
    for token_id in fields.stop_token_ids or ():
        if token_id >= info.vocab_size:
            raise BadRequest(_outside_vocabulary(token_id, info), param="stop_token_ids")
    temperature = _or(fields.temperature, defaults.temperature)
    top_p = _or(fields.top_p, defaults.top_p)
    top_k = defaults.top_k if fields.top_k is None else fields.top_k
    # A nucleus of nothing means the likeliest token alone.
    greedy = temperature == 0 or top_p == 0
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=0.0 if greedy else temperature,
        top_k=min(max(top_k, 0), info.vocab_size),
        top_p=top_p or 1.0,
        min_p=_or(fields.min_p, defaults.min_p),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, defaults.repetition_penalty),
        seed=None if fields.seed is None else (fields.seed + choice) & INT64_MAX,
        logit_bias=_logit_bias(fields, info),
        stop_token_ids=frozenset(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
    )


def answer_budget(
    info: EngineInfo, *, num_prompt_tokens: int, requested: int | None, default: int | None, param: str
) -> int:
    """How many tokens may be generated after a prompt; `default` None stands for the rest of the context.

    Nothing asked for is cut short silently. Raises ContextLengthExceeded.
    """
    room = info.max_model_len - num_prompt_tokens
    asked = requested or 0
    if room < asked or room < 0 or (room == 0 and requested is None):
        wanted = f" and {requested} were asked for as an answer" if requested is not None else ""
        raise ContextLengthExceeded(
            f"This model's context holds {info.max_model_len} tokens; the prompt has {num_prompt_tokens}"
            f"{wanted}. Shorten the prompt or ask for fewer tokens.",
            param=param,
        )
    if requested is not None:
        return requested
    return room if default is None else min(default, room)


def _logit_bias(fields: GenerationFields, info: EngineInfo) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (fields.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 19):
            raise BadRequest(
                f"logit_bias has the key {key[:100]!r}; expected a token id.", param="logit_bias"
            )
        if int(key) >= info.vocab_size:
            raise BadRequest(_outside_vocabulary(int(key), info), param="logit_bias")
        biases[int(key)] = float(bias)
    return biases


def _outside_vocabulary(token_id: int, info: EngineInfo) -> str:
    return f"Token id {token_id} is outside the vocabulary, which has ids 0 to {info.vocab_size - 1}."


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
