"""The whole benchmark of a checkpoint, in the order in which its figures need each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from engines.base import Engine, EngineOptions
from engines.bench.limits import best_limits, measured_device, phases
from engines.bench.linear_layers import measure_linear_layers
from engines.bench.offline import OfflineBenchmark, OfflineRates, benchmark_options
from engines.bench.over_http import HttpBenchmark
from engines.bench.phase import HttpPhase, KernelPhase, OnProgress, Phase, Workload
from engines.bench.server_process import running_server
from engines.capacity.cpu_device import cpu_device
from engines.capacity.model_cost import greedy_cost, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu import kernels
from engines.cpu.linear import LinearOptions
from engines.cpu.machine_limits import MachineLimits, measure_machine_limits
from engines.errors import InvalidRequest
from engines.host_memory import peak_resident_bytes, reset_peak_resident
from engines.registry import create_engine


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What was measured."""

    machine: MachineLimits
    machine_title: str
    load_seconds: float
    weight_bytes: int
    peak_resident_bytes: int | None
    kernels: tuple[KernelPhase, ...]
    phases: tuple[Phase, ...]
    http: tuple[HttpPhase, ...]


def run_benchmark(
    options: EngineOptions,
    workload: Workload,
    *,
    with_kernels: bool,
    over_http: bool,
    on_progress: OnProgress,
) -> BenchmarkResult:
    """Machine, linear layers if wanted, engine, service if wanted.

    Raises CheckpointError, InvalidRequest, LoadFailed.
    """
    assert options.checkpoint is not None
    checkpoint = Checkpoint.open(options.checkpoint)
    _check(workload, checkpoint.config.max_position_embeddings)
    on_progress("the machine's own limits")
    if options.num_threads:
        kernels.set_num_threads(options.num_threads)
    machine = measure_machine_limits()
    cost = model_cost(checkpoint, as_nvfp4=False, as_read=True)
    decode_cost = greedy_cost(cost) if options.may_screen_head else cost
    device = measured_device(cpu_device(), machine)
    layers: tuple[KernelPhase, ...] = ()
    if with_kernels:
        linear_options = LinearOptions(options.activations == "checkpoint", options.numerics == "reference")
        layers = measure_linear_layers(checkpoint, linear_options, device, on_progress)
    offline = asyncio.run(_offline(benchmark_options(options, workload), workload, on_progress))
    http: tuple[HttpPhase, ...] = ()
    if over_http:
        http = asyncio.run(
            _over_http(options, workload, checkpoint.config.vocab_size, offline.rates, on_progress)
        )
    # What others took of the machine at the beginning they may not take at the end.
    machine = best_limits(machine, measure_machine_limits())
    device = measured_device(cpu_device(), machine)
    return BenchmarkResult(
        machine=machine,
        machine_title=device.title,
        load_seconds=offline.load_seconds,
        weight_bytes=cost.resident_bytes,
        peak_resident_bytes=offline.peak_resident_bytes,
        kernels=layers,
        phases=phases(decode_cost, device, workload, offline.rates),
        http=http,
    )


@dataclass(frozen=True, slots=True)
class _Offline:
    rates: OfflineRates
    load_seconds: float
    peak_resident_bytes: int | None


async def _offline(options: EngineOptions, workload: Workload, on_progress: OnProgress) -> _Offline:
    loop = asyncio.get_running_loop()
    engine: Engine = create_engine("cpu", options)
    try:
        on_progress("loading the model")
        reset_peak_resident()
        started = loop.time()
        await engine.start()
        load_seconds = loop.time() - started
        rates = await OfflineBenchmark(engine, workload).measure(on_progress)
        return _Offline(rates, load_seconds, peak_resident_bytes())
    finally:
        await engine.close()


async def _over_http(
    options: EngineOptions,
    workload: Workload,
    vocab_size: int,
    offline: OfflineRates,
    on_progress: OnProgress,
) -> tuple[HttpPhase, ...]:
    assert options.checkpoint is not None
    on_progress("starting the server")
    async with running_server(
        options.checkpoint, serve_arguments(benchmark_options(options, workload))
    ) as target:
        return await HttpBenchmark(target, workload, vocab_size).measure(offline.decode, on_progress)


def serve_arguments(options: EngineOptions) -> list[str]:
    """`nybble serve`'s flags for engine options."""
    arguments = [
        "--engine", "cpu",
        "--activations", options.activations,
        "--numerics", options.numerics,
        "--kv-cache-dtype", options.kv_cache_dtype,
        "--num-threads", str(options.num_threads),
        "--max-num-seqs", str(options.max_num_seqs),
        "--max-num-batched-tokens", str(options.max_num_batched_tokens),
        "--no-prefix-caching",
        "--speculation", options.speculation,
    ]  # fmt: skip
    if options.kv_cache_memory_bytes is not None:
        arguments += ["--kv-cache-memory", str(options.kv_cache_memory_bytes)]
    return arguments


def _check(workload: Workload, max_position_embeddings: int) -> None:
    if workload.longest > max_position_embeddings:
        raise InvalidRequest(
            f"the benchmark's longest sequence has {workload.longest} tokens; the model has positions for "
            f"{max_position_embeddings}: ask for fewer tokens"
        )
    if workload.num_decode_tokens < 2:
        raise InvalidRequest("a decode run needs at least 2 tokens")
