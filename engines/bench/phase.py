"""What a benchmark gives: measured phases, each beside the machine's limit for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OnProgress = Callable[[str], None]
"""Called with a short text whenever a run of a phase begins."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run: token counts, how many streams together, and how often each phase is repeated."""

    num_prefill_tokens: int = 512
    num_prompt_tokens: int = 16
    num_decode_tokens: int = 64
    concurrencies: tuple[int, ...] = (1, 8, 16)
    num_repeats: int = 3

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.num_prefill_tokens + 1, self.num_prompt_tokens + self.num_decode_tokens)


@dataclass(frozen=True, slots=True)
class Phase:
    """One measured phase. `tokens_per_second` is the median over runs, all streams together.

    `limit` is what the machine's bandwidth and arithmetic, measured in the same run, would allow
    (docs/capacity.md), and `bound` which of the two ends first.
    """

    name: str
    num_streams: int
    tokens_per_second: float
    runs: tuple[float, ...]
    limit: float
    bound: str

    @property
    def share_of_limit(self) -> float:
        """Measured over possible."""
        return self.tokens_per_second / self.limit


@dataclass(frozen=True, slots=True)
class KernelPhase:
    """One product of the model by itself, `num_rows` activations at a time.

    `tokens_per_second` are rows over the best call's seconds; bytes are those of the weights as stored, a
    multiply-add is two operations. `limit`, also in rows a second, is what bandwidth and arithmetic allow.
    """

    name: str
    num_rows: int
    num_outputs: int
    num_columns: int
    is_fp4: bool
    tokens_per_second: float
    bytes_per_second: float
    operations_per_second: float
    limit: float
    bound: str

    @property
    def share_of_limit(self) -> float:
        """Measured over possible."""
        return self.tokens_per_second / self.limit


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles over requests or tokens, in seconds."""

    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    maximum_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Nearest-rank percentiles of at least one figure."""
        ordered = sorted(seconds)

        def rank(share: float) -> float:
            return ordered[math.ceil(share * len(ordered)) - 1]

        return cls(rank(0.50), rank(0.95), rank(0.99), ordered[-1])


@dataclass(frozen=True, slots=True)
class HttpPhase:
    """`num_streams` streamed completions at a time, over HTTP.

    `offline_tokens_per_second` is the engine's own figure for as many streams: its rate with no service.
    """

    num_streams: int
    num_requests: int
    tokens_per_second: float
    runs: tuple[float, ...]
    offline_tokens_per_second: float
    time_to_first_token: Latency
    inter_token: Latency

    @property
    def share_of_offline(self) -> float:
        """Throughput over HTTP over that of the engine by itself."""
        return self.tokens_per_second / self.offline_tokens_per_second


def median(figures: Sequence[float]) -> float:
    """The middle one."""
    return float(statistics.median(figures))
