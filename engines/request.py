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


class GrammarKind(str, Enum):
    """What the text of a `Grammar` is written in."""

    JSON_SCHEMA = "json_schema"  # JSON Schema; the output is one JSON value that is valid under it
    JSON_OBJECT = "json_object"  # no text: any one JSON object
    REGEX = "regex"  # the whole output matches: anchored at both ends
    LARK = "lark"  # a context-free grammar in Lark's notation, from `start`
    GBNF = "gbnf"  # a context-free grammar in llama.cpp's notation, from `root`


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language the output is held to: the tokens before the end of sequence spell a text in it.

    The end of sequence is withheld until the text is complete, and comes before `min_tokens` where nothing
    else may follow. One of `stop_token_ids` that spells text is to the grammar that text, and ends the
    sequence wherever it comes; then, and with FinishReason.LENGTH or ABORT, the text may be a beginning only.
    """

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch that filter off.
    `num_logprobs` None asks for none, 0 for the sampled token's only, k also for the k likeliest tokens.
    `num_prompt_logprobs` is the same for the prompt's tokens.
    Log-probabilities are those of the unmodified model distribution (before temperature and penalties).
    `grammar` restricts the choice to tokens that keep the output within a language, after penalties and bias.
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
    grammar: Grammar | None = None


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
class SequenceTiming:
    """Where a sequence's time in the engine went, by a monotonic clock.

    `queue_seconds` is the time from submission to the beginning of the first step that computed it,
    `prefill_seconds` from there to its first token, `decode_seconds` from its first token to the output that
    carries this. The three add up to its time in the engine so far; preemptions are within the latter two.
    """

    queue_seconds: float
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_preemptions: int = 0


# Not frozen although nobody changes it: one is made for every token, and freezing takes five times as long.
@dataclass(slots=True)
class TokenOutput:
    """What one or more engine steps added to a sequence.

    `token_ids` are the new ids only (an end-of-sequence id included); `logprobs`, when asked for, has
    one entry for each. `prompt_logprobs` comes with the first output only, one entry per prompt token,
    the first of them None (nothing precedes it). `num_cached_tokens` counts the prompt tokens whose KV
    entries were reused. The output with a `finish_reason` is the last one. `timing` is there on the first and
    on the last output, unless the engine has no such figures.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    timing: SequenceTiming | None = None
