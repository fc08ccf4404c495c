"""Measure the scheduler's promises: `python -m benchmarks.engine.scheduling --shapes 0.2b 1b --output FILE`.

- The inter-token latency of running streams, alone and while a prompt of 4,000 tokens is prefilled.
- The time to first token of a second request with the same prefix of 2,000 tokens, beside the first's.
- The processor time of an engine, and of a `nybble serve`, that has nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.cpu_time import cpu_seconds
from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.base import Engine, EngineOptions
from engines.bench.server_process import running_server
from engines.registry import create_engine
from engines.request import GenerationRequest, SamplingParams

LONG_PROMPT_TOKENS = 4000
PREFIX_TOKENS = 2000
NUM_STREAMS = 2
UNDER_WAY_TOKENS = 32
IDLE_SECONDS = 10.0

STRETCH_GOAL = 3.0  # of the median gap between tokens, beside a long prompt
PREFIX_GOAL = 0.10  # of the first request's time to first token
IDLE_GOAL = 0.01  # of a core


class Bench:
    """Runs requests of random tokens on a started engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._random = np.random.default_rng(0)
        self._num_requests = 0

    def prompt(self, num_tokens: int) -> tuple[int, ...]:
        """A prompt that has not been used before."""
        return tuple(map(int, self._random.integers(3, self._engine.info.vocab_size, num_tokens)))

    async def arrivals(self, prompt: tuple[int, ...], max_tokens: int) -> list[float]:
        """When each token came; the first entry is the moment of submission."""
        return [time.perf_counter(), *[moment async for moment in self.tokens(prompt, max_tokens)]]

    async def tokens(self, prompt: tuple[int, ...], max_tokens: int) -> AsyncIterator[float]:
        """The moment of each token, as it comes."""
        self._num_requests += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        request = GenerationRequest(f"bench-{self._num_requests}", prompt, sampling)
        async for output in self._engine.generate(request):
            moment = time.perf_counter()
            for _ in output.token_ids:
                yield moment

    async def beside_a_long_prompt(self) -> dict[str, float]:
        """Gaps between the tokens of running streams, before and while a long prompt comes in."""
        streams = [Stream(self) for _ in range(NUM_STREAMS)]
        for stream in streams:
            await stream.is_under_way.wait()
        before = time.perf_counter()
        moments = await self.arrivals(self.prompt(LONG_PROMPT_TOKENS), 1)
        for stream in streams:
            await stream.stop()
        idle = sorted(gap for stream in streams for gap in stream.gaps(0.0, before))
        beside = sorted(gap for stream in streams for gap in stream.gaps(before, moments[-1]))
        return {
            "idle_p50_seconds": statistics.median(idle),
            "beside_p50_seconds": statistics.median(beside),
            "beside_p99_seconds": beside[int(0.99 * (len(beside) - 1))],
            "stretch_p50": statistics.median(beside) / statistics.median(idle),
            "stretch_p99": beside[int(0.99 * (len(beside) - 1))] / statistics.median(idle),
            "long_prompt_tokens_per_second": LONG_PROMPT_TOKENS / (moments[-1] - moments[0]),
        }

    async def shared_prefix(self) -> dict[str, float]:
        """Time to first token of a prompt, and of another with the same beginning."""
        prefix = self.prompt(PREFIX_TOKENS)
        first, second = [await self.arrivals(prefix + self.prompt(20), 1) for _ in range(2)]
        return {
            "first_seconds": first[1] - first[0],
            "second_seconds": second[1] - second[0],
            "share": (second[1] - second[0]) / (first[1] - first[0]),
        }


class Stream:
    """An endless stream in the background, and when its tokens came; `is_under_way` after the first few."""

    def __init__(self, bench: Bench) -> None:
        self.is_under_way = asyncio.Event()
        self._moments: list[float] = []
        self._task = asyncio.create_task(self._run(bench))

    async def _run(self, bench: Bench) -> None:
        async for moment in bench.tokens(bench.prompt(16), 100_000):
            self._moments.append(moment)
            if len(self._moments) == UNDER_WAY_TOKENS:
                self.is_under_way.set()

    async def stop(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def gaps(self, start: float, end: float) -> list[float]:
        """Gaps between tokens of which the later came within those moments."""
        return [after - before for before, after in pairwise(self._moments) if start < after <= end]


async def idle_share(seconds: float) -> float:
    """Processor time of this process over the clock's while nobody asks anything."""
    started, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.perf_counter() - started)


async def idle_share_of_service(directory: Path, seconds: float) -> float:
    """The same of a `nybble serve` as a user starts it."""
    process_ids: list[int] = []
    async with running_server(directory, ["--engine", "cpu"], process_ids.append):
        await asyncio.sleep(1.0)  # what is done once after the start
        started, used = time.perf_counter(), cpu_seconds(process_ids[0])
        await asyncio.sleep(seconds)
        return (cpu_seconds(process_ids[0]) - used) / (time.perf_counter() - started)


async def measure(options: EngineOptions, num_repeats: int) -> dict[str, Any]:
    """All of it, on an engine of its own; of repeated measurements the one with the middle result."""
    assert options.checkpoint is not None
    engine = create_engine("cpu", options)
    try:
        await engine.start()
        bench = Bench(engine)
        await bench.arrivals(bench.prompt(600), 16)  # warm-up
        beside = [await bench.beside_a_long_prompt() for _ in range(num_repeats)]
        prefix = [await bench.shared_prefix() for _ in range(num_repeats)]
        idle = await idle_share(IDLE_SECONDS)
    finally:
        await engine.close()
    return judged(beside, prefix, idle, await idle_share_of_service(options.checkpoint, IDLE_SECONDS))


def judged(
    beside: Sequence[dict[str, float]], prefix: Sequence[dict[str, float]], idle: float, idle_service: float
) -> dict[str, Any]:
    """The middle runs, and which goals they meet."""
    middle_beside = sorted(beside, key=lambda run: run["stretch_p50"])[len(beside) // 2]
    middle_prefix = sorted(prefix, key=lambda run: run["share"])[len(prefix) // 2]
    return {
        "beside_a_long_prompt": middle_beside,
        "shared_prefix": middle_prefix,
        "idle_share_of_a_core": idle,
        "idle_share_of_a_core_service": idle_service,
        "goals_met": {
            "inter-token latency within 3x beside a long prompt (median)": (
                middle_beside["stretch_p50"] <= STRETCH_GOAL
            ),
            "inter-token latency within 3x beside a long prompt (p99)": (
                middle_beside["stretch_p99"] <= STRETCH_GOAL
            ),
            "second time to first token below 10 %": middle_prefix["share"] < PREFIX_GOAL,
            "idle below 1 % of a core": max(idle, idle_service) < IDLE_GOAL,
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.scheduling", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=("0.2b", "1b", "7b", "moe"), default=["0.2b"])
    parser.add_argument("--stretch", type=float, default=EngineOptions().max_step_stretch)
    parser.add_argument("--repeats", type=int, default=1)
    record.add_output_option(parser)
    options = parser.parse_args(arguments)
    begun = record.begin("benchmarks.engine.scheduling", arguments)
    results = {}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "model"
            make_random_checkpoint(checkpoint, SHAPES[shape], "mxfp4", "compressed-tensors")
            engine_options = EngineOptions(
                checkpoint, max_model_len=8192, speculation="off", max_step_stretch=options.stretch
            )
            results[shape] = asyncio.run(measure(engine_options, options.repeats))
    record.publish(begun.document({"shapes": results}), options.output)


if __name__ == "__main__":
    main()
