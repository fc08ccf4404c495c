"""What one request took: noted on its way, told in its log line, its headers, its usage and its trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from engines.request import SequenceTiming


@dataclass(slots=True)
class SequenceCost:
    """One answer's seconds from `began` on; None: it did not come so far.

    `queue_seconds` counts the wait for its turn and that in the engine's own queue.
    """

    began: float = field(default_factory=time.perf_counter)
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    num_preemptions: int = 0
    num_generated_tokens: int = 0
    finish_reason: str | None = None


@dataclass(slots=True)
class GenerationFacts:
    """What a trace says about a generating request, as the client sent it."""

    operation: str
    model: str
    response_id: str
    num_choices: int
    is_streamed: bool
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    prompt: object = None  # as JSON; only where the operator wants prompts
    answers: dict[int, list[str]] | None = None  # the same


@dataclass(slots=True)
class RequestAccount:
    """Times are `time.perf_counter()`; `generation` is None for a request that generates nothing."""

    arrived: float = field(default_factory=time.perf_counter)
    tokenize_began: float | None = None
    tokenize_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    sequences: dict[int, SequenceCost] = field(default_factory=dict)
    generation: GenerationFacts | None = None

    def sequence(self, index: int) -> SequenceCost:
        """The entry of the answer with this index."""
        return self.sequences.setdefault(index, SequenceCost())

    @property
    def num_generated_tokens(self) -> int:
        """Over all answers."""
        return sum(cost.num_generated_tokens for cost in self.sequences.values())

    @property
    def num_preemptions(self) -> int:
        """Over all answers."""
        return sum(cost.num_preemptions for cost in self.sequences.values())

    @property
    def finish_reasons(self) -> list[str]:
        """Of the answers that ended, in their order."""
        costs = (self.sequences[index] for index in sorted(self.sequences))
        return [cost.finish_reason for cost in costs if cost.finish_reason is not None]

    def seconds(self) -> dict[str, float]:
        """The parts known so far; of several answers, which run side by side, the longest."""
        parts: dict[str, float] = {}
        if self.tokenize_seconds is not None:
            parts["tokenize_seconds"] = self.tokenize_seconds
        for name in ("queue_seconds", "prefill_seconds", "decode_seconds"):
            known = [value for cost in self.sequences.values() if (value := getattr(cost, name)) is not None]
            if known:
                parts[name] = max(known)
        return {name: round(value, 6) for name, value in parts.items()}

    def server_timing(self) -> str:
        """The value of a `Server-Timing` header (W3C): milliseconds by name."""
        parts = self.seconds()
        return ", ".join(
            f"{name.removesuffix('_seconds')};dur={value * 1e3:.3f}" for name, value in parts.items()
        )


def request_account(connection: HTTPConnection) -> RequestAccount:
    """The account of the request that is being served."""
    state = connection.scope.setdefault("state", {})
    account: RequestAccount = state.setdefault("account", RequestAccount())
    return account


def first_output_cost(
    cost: SequenceCost, timing: SequenceTiming | None, *, waited: float, in_engine: float
) -> None:
    """Fill queue and prefill at a sequence's first token, from the engine's figures where it has them."""
    if timing is None:
        cost.queue_seconds, cost.prefill_seconds = waited, in_engine
    else:
        cost.queue_seconds = waited + timing.queue_seconds
        cost.prefill_seconds = timing.prefill_seconds
