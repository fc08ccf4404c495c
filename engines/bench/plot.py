"""Throughput and latency against concurrency, as a picture and in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from engines.bench.phase import HttpPhase
from engines.errors import MissingExtra

_BAR_CELLS = 40


def save_plot(phases: tuple[HttpPhase, ...], title: str, path: Path) -> None:
    """Write a PNG of two panels. Raises MissingExtra without matplotlib, OSError as the file system does."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a plot needs matplotlib; install it with: pip install 'nybble[bench]'") from error
    sizes = [phase.num_streams for phase in phases]
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    throughput, latency = figure.subplots(1, 2)
    throughput.plot(sizes, [phase.tokens_per_second for phase in phases], "o-", label="over HTTP")
    throughput.plot(
        sizes, [phase.offline_tokens_per_second for phase in phases], "s--", label="engine by itself"
    )
    throughput.set_ylabel("tokens/s, all streams")
    for name, share in (("p50", "p50_seconds"), ("p99", "p99_seconds")):
        first = [1e3 * getattr(phase.time_to_first_token, share) for phase in phases]
        gaps = [1e3 * getattr(phase.inter_token, share) for phase in phases]
        latency.plot(sizes, first, "o-", label=f"first token, {name}")
        latency.plot(sizes, gaps, "s--", label=f"between tokens, {name}")
    latency.set_ylabel("ms")
    latency.set_yscale("log")
    for panel in (throughput, latency):
        panel.set_xlabel("streams at a time")
        panel.set_xticks(sizes)
        panel.grid(alpha=0.3)
        panel.legend()
    throughput.set_ylim(bottom=0)
    aside = path.with_name(f".{path.name}.partial")
    figure.savefig(aside, format="png", dpi=120)
    aside.replace(path)


def show_bars(phases: tuple[HttpPhase, ...], console: Console) -> None:
    """A bar of throughput and one of inter-token latency for each concurrency."""
    fastest = max(phase.tokens_per_second for phase in phases)
    slowest = max(phase.inter_token.p50_seconds for phase in phases)
    table = Table("streams", "tokens/s", "", "ITL p50, ms", "", box=None)
    for phase in phases:
        gap = phase.inter_token.p50_seconds
        table.add_row(
            str(phase.num_streams),
            f"{phase.tokens_per_second:,.1f}",
            "█" * max(1, round(_BAR_CELLS * phase.tokens_per_second / fastest)),
            f"{gap * 1e3:,.1f}",
            "█" * max(1, round(_BAR_CELLS * gap / slowest)),
        )
    console.print(table)
