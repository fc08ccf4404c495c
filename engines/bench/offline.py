"""The engine by itself: prefill and decode through the Engine interface, no service and no text."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import numpy as np

from engines.base import Engine, EngineOptions
from engines.bench.phase import OnProgress, Workload
from engines.bench.steady_rate import steady_rate
from engines.request import GenerationRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class OfflineRates:
    """Tokens a second of every run: `prefill`, and `decode` by number of streams."""

    prefill: tuple[float, ...]
    decode: dict[int, tuple[float, ...]]


def benchmark_options(options: EngineOptions, workload: Workload) -> EngineOptions:
    """Room for the largest batch, and nothing that random prompts would mislead."""
    return replace(
        options,
        max_num_seqs=max(options.max_num_seqs, *workload.concurrencies),
        prefix_caching=False,
        speculation="off",  # random text repeats itself as no real one does
    )


class OfflineBenchmark:
    """Runs phases on a started engine. Prompts are random and never repeat, so no prefix is cached."""

    def __init__(self, engine: Engine, workload: Workload, *, seed: int = 0) -> None:
        self._engine = engine
        self._workload = workload
        self._random = np.random.default_rng(seed)
        self._num_requests = 0

    async def measure(self, on_progress: OnProgress) -> OfflineRates:
        """One run of each phase to warm up, then the phases in turn, so that drift hits all alike."""
        workload = self._workload
        prefill: list[float] = []
        decode: dict[int, list[float]] = {size: [] for size in workload.concurrencies}
        for run in range(workload.num_repeats + 1):
            label = "warm-up" if run == 0 else f"run {run} of {workload.num_repeats}"
            on_progress(f"prefill {workload.num_prefill_tokens}, {label}")
            rate = await self.prefill()
            if run:
                prefill.append(rate)
            for size in workload.concurrencies:
                on_progress(f"decode, {size} streams, {label}")
                rate = await self.decode(size)
                if run:
                    decode[size].append(rate)
        return OfflineRates(tuple(prefill), {size: tuple(rates) for size, rates in decode.items()})

    async def prefill(self) -> float:
        """Prompt tokens a second, up to the first token of a single sequence."""
        request = self._request(self._workload.num_prefill_tokens, 1)
        started = time.perf_counter()
        await self._arrivals(request)
        return self._workload.num_prefill_tokens / (time.perf_counter() - started)

    async def decode(self, num_streams: int) -> float:
        """Generated tokens a second, from the moment every stream has its first until the first one ends."""
        workload = self._workload
        requests = [
            self._request(workload.num_prompt_tokens, workload.num_decode_tokens) for _ in range(num_streams)
        ]
        sent = time.perf_counter()
        streams = await asyncio.gather(*map(self._arrivals, requests))
        return steady_rate(streams, sent)

    def _request(self, num_prompt_tokens: int, max_tokens: int) -> GenerationRequest:
        self._num_requests += 1
        prompt = self._random.integers(3, self._engine.info.vocab_size, num_prompt_tokens)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return GenerationRequest(f"bench-{self._num_requests}", tuple(map(int, prompt)), sampling)

    async def _arrivals(self, request: GenerationRequest) -> list[float]:
        """When each token came; tokens delivered together share their moment."""
        moments: list[float] = []
        async for output in self._engine.generate(request):
            moments.extend([time.perf_counter()] * len(output.token_ids))
        return moments
