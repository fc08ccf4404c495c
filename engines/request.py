"""The words spoken across the seam between service and engines: token ids, never text.

Standard library only, so that every engine and every test can import it at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class FinishReason(str, Enum):
    """Why a sequence ended. A failure is no reason: it is raised as an `EngineError`."""

    STOP = "stop"  # an end-of-sequence id or one of `stop_token_ids`
    LENGTH = "length"  # `max_tokens` reached, or the context is full
    ABORT = "abort"  # `Engine.abort` was called


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch that filter off.
    `num_logprobs` None asks for none, 0 for the sampled token's only, k also for the k likeliest tokens.
    `num_prompt_logprobs` is the same for the prompt's tokens.
    Log-probabilities are those of the unmodified model distribution (before temperature and penalties).
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `request_id` is unique among the requests in flight.

    `priority`: lower is served first; equal priorities are served in order of arrival.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token, its rank (1 is the likeliest), and the likeliest tokens, best first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one or more engine steps added to a sequence.

    `token_ids` are the new ids only (an end-of-sequence id included); `logprobs`, when asked for, has
    one entry for each. `prompt_logprobs` comes with the first output only, one entry per prompt token,
    the first of them None (nothing precedes it). `num_cached_tokens` counts the prompt tokens whose KV
    entries were reused. The output with a `finish_reason` is the last one.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
