"""A benchmark's result as JSON for records and as tables for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.bench.phase import HttpPhase, KernelPhase, Latency, Phase
from engines.bench.run import BenchmarkResult


def benchmark_json(result: BenchmarkResult) -> dict[str, Any]:
    """machine_limits, kernels and phases [{tokens_per_second, limit, share_of_limit}], http; SI units."""
    return {
        "machine_limits": {"title": result.machine_title, **asdict(result.machine)},
        "load_seconds": result.load_seconds,
        "weight_bytes": result.weight_bytes,
        "peak_resident_bytes": result.peak_resident_bytes,
        "kernels": [{**asdict(phase), "share_of_limit": phase.share_of_limit} for phase in result.kernels],
        "phases": [{**asdict(phase), "share_of_limit": phase.share_of_limit} for phase in result.phases],
        "http": [{**asdict(phase), "share_of_offline": phase.share_of_offline} for phase in result.http],
    }


def show(result: BenchmarkResult, console: Console) -> None:
    """Tables of the phases and of the service."""
    resident = result.peak_resident_bytes
    console.print(
        Text(
            f"{result.machine_title}: reads {result.machine.read_bytes_per_second / 1e9:.1f} GB/s, "
            f"computes {result.machine.best_operations_per_second / 1e12:.3f} T operations/s; weights "
            f"{result.weight_bytes / 1e9:.2f} GB, loaded in {result.load_seconds:.1f} s"
            + ("" if resident is None else f", at most {resident / 1e9:.2f} GB resident")
        )
    )
    if result.kernels:
        console.print(_kernel_table(result.kernels))
    console.print(_phase_table(result.phases))
    if result.http:
        console.print(_http_table(result.http))


def _kernel_table(phases: tuple[KernelPhase, ...]) -> Table:
    table = Table("linear layer", "shape", "rows", "GB/s", "GFLOP/s", "share", "bound by")
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.num_outputs}x{phase.num_columns} {'FP4' if phase.is_fp4 else 'dense'}",
            str(phase.num_rows),
            f"{phase.bytes_per_second / 1e9:,.1f}",
            f"{phase.operations_per_second / 1e9:,.0f}",
            f"{phase.share_of_limit:.0%}",
            phase.bound,
        )
    return table


def _phase_table(phases: tuple[Phase, ...]) -> Table:
    table = Table("engine", "tokens/s", "limit", "share", "bound by", "runs")
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.tokens_per_second:,.1f}",
            f"{phase.limit:,.1f}",
            f"{phase.share_of_limit:.0%}",
            phase.bound,
            " ".join(f"{rate:,.1f}" for rate in phase.runs),
        )
    return table


def _http_table(phases: tuple[HttpPhase, ...]) -> Table:
    table = Table("over HTTP", "tokens/s", "of offline", "TTFT p50 / p99, ms", "ITL p50 / p99, ms")
    for phase in phases:
        table.add_row(
            f"{phase.num_streams} streams",
            f"{phase.tokens_per_second:,.1f}",
            f"{phase.share_of_offline:.0%}",
            _milliseconds(phase.time_to_first_token),
            _milliseconds(phase.inter_token),
        )
    return table


def _milliseconds(latency: Latency) -> str:
    return f"{latency.p50_seconds * 1e3:,.1f} / {latency.p99_seconds * 1e3:,.1f}"
