"""Rates of a system that takes whole requests and can tell when each token came."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from engines.bench.peers.workers.worker_loop import WorkerOptions, random_prompts
from engines.bench.steady_rate import steady_rate


class WholeRequests(ABC):
    """`prefill` and `decode` of a `LoadedSystem`, by running requests to their end."""

    def __init__(self, options: WorkerOptions) -> None:
        self._vocab_size = options.vocab_size

    def prefill(self, num_tokens: int) -> float:
        """One request for one token."""
        started = time.perf_counter()
        ((ended,),) = self._run(random_prompts(1, num_tokens, self._vocab_size), 1)
        return num_tokens / (ended - started)

    def decode(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """As many requests at once."""
        prompts = random_prompts(num_streams, num_prompt_tokens, self._vocab_size)
        sent = time.perf_counter()
        return steady_rate(self._run(prompts, num_tokens), sent)

    @abstractmethod
    def _run(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        """When each token of each prompt's answer came."""
