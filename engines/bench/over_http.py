"""The service over HTTP: throughput, time to first token and inter-token latency at each concurrency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from engines.bench.http_load import StreamTimes, Target, run_load
from engines.bench.phase import HttpPhase, Latency, OnProgress, Workload, median
from engines.bench.steady_rate import steady_rate


class HttpBenchmark:
    """Runs the decode workload of `OfflineBenchmark` over HTTP."""

    def __init__(self, target: Target, workload: Workload, vocab_size: int, *, seed: int = 1) -> None:
        self._target = target
        self._workload = workload
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)

    async def measure(
        self, offline: Mapping[int, Sequence[float]], on_progress: OnProgress
    ) -> tuple[HttpPhase, ...]:
        """A warm-up and `num_repeats` runs of each concurrency, in turn. Raises LoadFailed."""
        workload = self._workload
        streams: dict[int, list[StreamTimes]] = {size: [] for size in workload.concurrencies}
        rates: dict[int, list[float]] = {size: [] for size in workload.concurrencies}
        for run in range(workload.num_repeats + 1):
            label = "warm-up" if run == 0 else f"run {run} of {workload.num_repeats}"
            for size in workload.concurrencies:
                on_progress(f"HTTP, {size} streams, {label}")
                times = await run_load(self._target, self._prompts(size), workload.num_decode_tokens, size)
                if run:
                    streams[size].extend(times)
                    rates[size].append(_rate(times))
        return tuple(
            _phase(size, streams[size], rates[size], median(offline[size])) for size in workload.concurrencies
        )

    def _prompts(self, num_prompts: int) -> list[list[int]]:
        shape = (num_prompts, self._workload.num_prompt_tokens)
        prompts: list[list[int]] = self._random.integers(3, self._vocab_size, shape).tolist()
        return prompts


def _rate(times: Sequence[StreamTimes]) -> float:
    """Generated tokens a second while all streams decode; a chunk may carry more or less than a token."""
    num_chunks = sum(len(stream.chunks) for stream in times)
    sent = min(stream.sent for stream in times)
    return (
        steady_rate([stream.chunks for stream in times], sent) * sum(s.num_tokens for s in times) / num_chunks
    )


def _phase(
    num_streams: int, streams: Sequence[StreamTimes], rates: Sequence[float], offline: float
) -> HttpPhase:
    # No gap at all: answers so short that each came in one piece.
    gaps = [after - before for stream in streams for before, after in pairwise(stream.chunks)] or [0.0]
    return HttpPhase(
        num_streams=num_streams,
        num_requests=len(streams),
        tokens_per_second=median(rates),
        runs=tuple(rates),
        offline_tokens_per_second=offline,
        time_to_first_token=Latency.of([stream.time_to_first_token_seconds for stream in streams]),
        inter_token=Latency.of(gaps),
    )
