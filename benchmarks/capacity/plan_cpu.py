"""The CPU row of `nybble plan`, checked: its ceilings beside the CPU engine's measured prefill and decode.

    python -m benchmarks.capacity.plan_cpu --output benchmarks/results/plan-cpu.json

A checkpoint of the chosen shape is made with random weights in the MXFP4 layout of real ones (speed does
not depend on their values) and served by the engine itself, without HTTP. Ceilings come from the machine's
read bandwidth and matrix rate, measured before and after by `nybble plan`'s own functions; the better of
the two counts, because a neighbour can only lower it.

Every phase is stated twice: by the clock, and by the processor time that all threads took, divided by their
number. The latter leaves out the time in which other programs had the cores, but not their pressure on memory
and caches; and what one thread does while the others wait counts as if they shared it, so it is the best that
a quiet machine could show.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.base import Engine, EngineOptions
from engines.capacity.ceilings import decode_ceiling, prefill_ceiling
from engines.capacity.cpu_device import CpuMeasurement, cpu_device, measure_cpu, measured_device
from engines.capacity.devices import Device
from engines.capacity.model_cost import ModelCost, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu import kernels
from engines.cpu.engine import CpuEngine
from engines.request import GenerationRequest, SamplingParams

PROMPT_TOKENS = 128  # of a sequence that decodes
DECODE_TOKENS = 32
PREFILL_TOKENS = 512
BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class Rate:
    """Tokens a second, by the clock and by processor time divided over the threads."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 means all physical cores")
    record.add_output_option(parser)
    arguments = parser.parse_args()
    begun = record.begin("benchmarks.capacity.plan_cpu")
    if arguments.threads:
        kernels.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        num_parameters = make_random_checkpoint(
            directory, SHAPES[arguments.shape], "mxfp4", "compressed-tensors"
        )
        before = measure_cpu()
        rates = asyncio.run(measure(directory, arguments.runs))
        machine = best(before, measure_cpu())
        cost = model_cost(Checkpoint.open(directory), as_nvfp4=False)
    device = measured_device(cpu_device(), machine)
    figures = {
        "num_threads": kernels.num_threads(),
        "model": {"shape": arguments.shape, "format": "mxfp4", "num_parameters": num_parameters},
        "measured_limits": {name: float(f"{value:.4g}") for name, value in asdict(machine).items()},
        "phases": compare(cost, device, rates),
    }
    record.publish(begun.document(figures), arguments.output)


def best(a: CpuMeasurement, b: CpuMeasurement) -> CpuMeasurement:
    """The better of two, figure by figure."""
    pairs = zip(asdict(a).values(), asdict(b).values(), strict=True)
    return CpuMeasurement(*(max(pair) for pair in pairs))


def compare(cost: ModelCost, device: Device, rates: dict[str, list[Rate]]) -> list[dict[str, Any]]:
    """Each phase with its ceiling, as `nybble plan` reckons it, and the share of it that was reached."""
    kv_bytes = cost.kv_bytes_per_token("bfloat16")
    prefill = prefill_ceiling(cost, device, PREFILL_TOKENS, kv_bytes)
    ceilings = {"prefill": (prefill.tokens_per_second, prefill.bound)}
    for size in BATCH_SIZES:
        context = PROMPT_TOKENS + DECODE_TOKENS // 2
        decode = decode_ceiling(cost, device, size, context, kv_bytes, size * (context + DECODE_TOKENS))
        ceilings[f"decode {size}"] = (decode.tokens_per_second, decode.bound)
    rows = []
    for name, (ceiling, bound) in ceilings.items():
        wall = median(rate.wall for rate in rates[name])
        cpu = median(rate.cpu for rate in rates[name])
        rows.append(
            {
                "phase": name,
                "bound": bound,
                "ceiling_tokens_per_second": round(ceiling, 2),
                "tokens_per_second": round(wall, 2),
                "tokens_per_second_by_processor_time": round(cpu, 2),
                "share": round(wall / ceiling, 3),
                "share_by_processor_time": round(cpu / ceiling, 3),
            }
        )
    return rows


async def measure(directory: Path, num_runs: int) -> dict[str, list[Rate]]:
    """All phases in turn, `num_runs` times after one that warms up."""
    options = EngineOptions(
        directory,
        max_model_len=PREFILL_TOKENS + 1,
        max_num_seqs=max(BATCH_SIZES),
        max_num_batched_tokens=PREFILL_TOKENS,
        prefix_caching=False,
        speculation="off",  # a step yields one token for each sequence, as the plan reckons
    )
    engine = CpuEngine(options)
    await engine.start()
    phases: dict[str, Callable[[], Awaitable[Rate]]] = {"prefill": partial(prefill_rate, engine)}
    for size in BATCH_SIZES:
        phases[f"decode {size}"] = partial(decode_rate, engine, size)
    rates: dict[str, list[Rate]] = {name: [] for name in phases}
    try:
        for run in range(num_runs + 1):
            for name, phase in phases.items():
                rate = await phase()
                if run:
                    rates[name].append(rate)
        return rates
    finally:
        await engine.close()


async def prefill_rate(engine: Engine) -> Rate:
    """Prompt tokens a second up to the first token of one sequence."""
    clock = Clock()
    await run_all(engine, [request(engine, 0, PREFILL_TOKENS, 1)])
    return clock.rate(PREFILL_TOKENS)


async def decode_rate(engine: Engine, num_sequences: int) -> Rate:
    """Generated tokens a second: what the sequences take beyond a run that only has their first tokens."""
    prompts = [request(engine, index, PROMPT_TOKENS, 1) for index in range(num_sequences)]
    clock = Clock()
    await run_all(engine, prompts)
    without = clock.elapsed()
    sequences = [request(engine, index, PROMPT_TOKENS, DECODE_TOKENS) for index in range(num_sequences)]
    clock = Clock()
    await run_all(engine, sequences)
    with_them = clock.elapsed()
    num_tokens = num_sequences * (DECODE_TOKENS - 1)
    return Rate(*(num_tokens / max(b - a, 1e-9) for a, b in zip(without, with_them, strict=True)))


class Clock:
    """Seconds since it was made: by the clock, and of processor time for each thread of the kernels."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def elapsed(self) -> tuple[float, float]:
        wall, cpu = self._began
        return time.perf_counter() - wall, (time.process_time() - cpu) / kernels.num_threads()

    def rate(self, num_tokens: int) -> Rate:
        return Rate(*(num_tokens / seconds for seconds in self.elapsed()))


def request(engine: Engine, index: int, num_prompt_tokens: int, max_tokens: int) -> GenerationRequest:
    random = np.random.default_rng([index, num_prompt_tokens])
    prompt = tuple(int(token) for token in random.integers(3, engine.info.vocab_size, num_prompt_tokens))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest(f"{index}-{max_tokens}", prompt, sampling)


async def run_all(engine: Engine, requests: Sequence[GenerationRequest]) -> None:
    async def run(one: GenerationRequest) -> None:
        async for _ in engine.generate(one):
            pass

    await asyncio.gather(*map(run, requests))


if __name__ == "__main__":
    main()
