"""What HTTP costs beside the engine by itself: `python -m benchmarks.http.overhead DIR --output FILE`.

The engine in this process and a `nybble serve` of the same checkpoint are both loaded, and take turns at the
same workload (as many streams, prompts and generated tokens of the same lengths, greedy, no prefix cache, no
speculation); the one whose turn it is not sleeps. Compared are tokens a second while all streams decode, and
processor time for each token, of all threads; the latter leaves out what other programs take.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.cpu_time import cpu_seconds
from engines.base import EngineOptions
from engines.bench.http_load import Target, run_load
from engines.bench.offline import OfflineBenchmark, benchmark_options
from engines.bench.phase import Workload
from engines.bench.run import serve_arguments
from engines.bench.server_process import running_server
from engines.bench.steady_rate import steady_rate
from engines.cpu.engine import CpuEngine

WANTED_SHARE = 0.97


@dataclass(frozen=True, slots=True)
class Turn:
    """One run: tokens a second, and milliseconds of processor time for a token."""

    tokens_per_second: float
    cpu_milliseconds_per_token: float


class Server:
    """The service's side: its address and its process."""

    def __init__(self, target: Target, process_id: int, vocab_size: int, workload: Workload) -> None:
        self._target = target
        self._process_id = process_id
        self._vocab_size = vocab_size
        self._workload = workload
        self._random = np.random.default_rng(1)

    async def turn(self, num_streams: int) -> Turn:
        """`num_streams` streamed completions together."""
        shape = (num_streams, self._workload.num_prompt_tokens)
        prompts = self._random.integers(3, self._vocab_size, shape).tolist()
        before = cpu_seconds(self._process_id)
        streams = await run_load(self._target, prompts, self._workload.num_decode_tokens, num_streams)
        used = cpu_seconds(self._process_id) - before
        num_tokens = sum(stream.num_tokens for stream in streams)
        # A chunk may carry more or less than a token.
        tokens_per_chunk = num_tokens / sum(len(stream.chunks) for stream in streams)
        sent = min(stream.sent for stream in streams)
        rate = steady_rate([stream.chunks for stream in streams], sent) * tokens_per_chunk
        return Turn(rate, used / num_tokens * 1e3)


async def offline_turn(benchmark: OfflineBenchmark, num_streams: int, workload: Workload) -> Turn:
    """The same with the engine in this process."""
    before = time.process_time()
    rate = await benchmark.decode(num_streams)
    used = time.process_time() - before
    return Turn(rate, used / (num_streams * workload.num_decode_tokens) * 1e3)


async def measure(directory: Path, num_streams: int, workload: Workload) -> dict[str, Any]:
    """Both sides in turn, `num_repeats` times after a round that warms up."""
    options = benchmark_options(EngineOptions(directory), workload)
    process_ids: list[int] = []
    engine = CpuEngine(options)
    await engine.start()
    try:
        offline = OfflineBenchmark(engine, workload)
        async with running_server(directory, serve_arguments(options), process_ids.append) as target:
            server = Server(target, process_ids[0], engine.info.vocab_size, workload)
            sides: dict[str, Callable[[], Awaitable[Turn]]] = {
                "offline": lambda: offline_turn(offline, num_streams, workload),
                "http": lambda: server.turn(num_streams),
            }
            turns: dict[str, list[Turn]] = {name: [] for name in sides}
            for number in range(workload.num_repeats + 1):
                for name in sides if number % 2 else reversed(sides):
                    turn = await sides[name]()
                    if number:
                        turns[name].append(turn)
    finally:
        await engine.close()
    return summary(turns["offline"], turns["http"])


def summary(offline: list[Turn], http: list[Turn]) -> dict[str, Any]:
    """Medians; the share is that of the medians, and of the best runs, which others disturbed least."""
    rates = {"offline": [t.tokens_per_second for t in offline], "http": [t.tokens_per_second for t in http]}
    cpu = {
        "offline": median(turn.cpu_milliseconds_per_token for turn in offline),
        "http": median(turn.cpu_milliseconds_per_token for turn in http),
    }
    share = median(rates["http"]) / median(rates["offline"])
    return {
        "tokens_per_second": {name: round(median(values), 2) for name, values in rates.items()},
        "share_of_offline": round(share, 4),
        "share_of_offline_best_runs": round(max(rates["http"]) / max(rates["offline"]), 4),
        "cpu_milliseconds_per_token": {name: round(value, 4) for name, value in cpu.items()},
        "cpu_overhead": round(cpu["http"] / cpu["offline"] - 1, 4),
        "is_as_wanted": share >= WANTED_SHARE,
        "runs": {name: [round(value, 2) for value in values] for name, values in rates.items()},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.http.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    record.add_output_option(parser)
    options = parser.parse_args()
    begun = record.begin("benchmarks.http.overhead")
    workload = Workload(
        num_decode_tokens=options.decode_tokens,
        concurrencies=(options.streams,),
        num_repeats=options.repeats,
    )
    figures = asyncio.run(measure(options.directory, options.streams, workload))
    head = {"model": options.directory.name, "num_streams": options.streams, "wanted_share": WANTED_SHARE}
    record.publish(begun.document(head | figures, ("uvicorn", "uvloop")), options.output)


if __name__ == "__main__":
    main()
