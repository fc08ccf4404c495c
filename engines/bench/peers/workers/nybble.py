"""Nybble's own CPU engine, measured in a process like everybody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engines.base import EngineOptions
from engines.bench.offline import OfflineBenchmark, benchmark_options
from engines.bench.peers.workers.worker_loop import WorkerOptions, installed_versions
from engines.bench.phase import Workload
from engines.cpu import kernels
from engines.registry import create_engine


class Nybble:
    """The engine behind `OfflineBenchmark`, on an event loop that runs only while something is measured."""

    def __init__(self, options: WorkerOptions) -> None:
        workload = Workload(concurrencies=(options.max_num_seqs,))
        engine_options = EngineOptions(
            checkpoint=Path(options.model),
            activations=options.settings["activations"],
            numerics=options.settings["numerics"],
            num_threads=options.num_threads,
            max_model_len=options.max_model_len,
        )
        self._engine = create_engine("cpu", benchmark_options(engine_options, workload))
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._engine.start())

    def versions(self) -> dict[str, str]:
        """Of Nybble, and the instruction set in use."""
        return installed_versions("nybble") | {"isa": kernels.isa_name()}

    def prefill(self, num_tokens: int) -> float:
        """One request for one token."""
        benchmark = OfflineBenchmark(self._engine, Workload(num_prefill_tokens=num_tokens))
        return self._loop.run_until_complete(benchmark.prefill())

    def decode(self, num_streams: int, num_prompt_tokens: int, num_tokens: int) -> float:
        """As many requests at once."""
        workload = Workload(num_prompt_tokens=num_prompt_tokens, num_decode_tokens=num_tokens)
        benchmark = OfflineBenchmark(self._engine, workload)
        return self._loop.run_until_complete(benchmark.decode(num_streams))


load = Nybble
"""What a worker serves."""
