"""A comparison as JSON for records and as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from engines.bench.peers.comparison import SystemResult
from engines.bench.peers.shares import own_phases
from engines.bench.phase import Workload
from engines.cpu.machine_limits import MachineLimits


def comparison_json(
    results: Sequence[SystemResult], machine: MachineLimits, workload: Workload
) -> dict[str, Any]:
    """systems [{name, tokens_per_second {phase: median}, runs}], shares_of_limit, skipped, ratios."""
    return {
        "systems": [_system_json(result) for result in results if result.skipped is None],
        "shares_of_limit": [
            {"system": result.system.name, **asdict(phase), "share_of_limit": phase.share_of_limit}
            for result in results
            if result.skipped is None and not result.system.is_peer
            for phase in own_phases(result, machine, workload)
        ],
        "skipped": [
            {"name": result.system.name, "reason": result.skipped} for result in results if result.skipped
        ],
        "ratios": list(ratios(results)),
    }


def ratios(results: Sequence[SystemResult]) -> Iterator[dict[str, Any]]:
    """For each of our figures: what it is over each peer's, and over the best of them."""
    peers = [result for result in results if result.system.is_peer and result.skipped is None]
    for result in results:
        if result.system.is_peer:
            continue
        for phase, rate in result.rates().items():
            theirs = {peer.system.name: peer.rates()[phase] for peer in peers}
            best = max(theirs, key=theirs.__getitem__, default=None)
            yield {
                "system": result.system.name,
                "phase": phase,
                "over": {name: round(rate / other, 2) for name, other in theirs.items()},
                "best_peer": best,
                "over_best_peer": None if best is None else round(rate / theirs[best], 2),
            }


def show_comparison(results: Sequence[SystemResult], console: Console) -> None:
    """Medians of all systems, ratios over the best peer, and why some are missing."""
    measured = [result for result in results if result.skipped is None]
    phases = list(dict.fromkeys(phase for result in measured for phase in result.runs))
    table = Table("tokens/s", *phases)
    for result in measured:
        table.add_row(result.system.name, *(f"{rate:,.1f}" for rate in result.rates().values()))
    console.print(table)
    found = list(ratios(results))
    if any(each["best_peer"] for each in found):
        console.print(_ratio_table(found, phases))
    for result in results:
        if result.skipped:
            console.print(f"{result.system.name} skipped: {result.skipped}", markup=False)


def _ratio_table(found: Sequence[dict[str, Any]], phases: Sequence[str]) -> Table:
    table = Table("times the best peer", *phases)
    by_system: dict[str, list[str]] = {}
    for each in found:
        if each["best_peer"] is not None:
            cell = f"{each['over_best_peer']:.2f} ({each['best_peer']})"
            by_system.setdefault(each["system"], []).append(cell)
    for name, cells in by_system.items():
        table.add_row(name, *cells)
    return table


def _system_json(result: SystemResult) -> dict[str, Any]:
    loaded = result.loaded
    return {
        "name": result.system.name,
        "family": result.system.family,
        "settings": dict(result.system.settings),
        "versions": {} if loaded is None else dict(loaded.versions),
        "model_bytes": result.system.model_bytes,
        "load_seconds": None if loaded is None else round(loaded.seconds, 2),
        "peak_resident_bytes": result.peak_resident_bytes,
        "tokens_per_second": {phase: round(rate, 2) for phase, rate in result.rates().items()},
        "runs": {phase: [round(rate, 2) for rate in runs] for phase, runs in result.runs.items()},
    }
