"""`nybble doctor`: what this machine can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.doctor import Diagnosis, diagnose
from engines.machine_report import MachineReport

_GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(doctor)


def doctor(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A checkpoint, or a folder of checkpoints.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show the machine, the runtimes on it, and which engine can run which checkpoint."""
    diagnosis = diagnose(directory)
    if as_json:
        typer.echo(json.dumps(diagnosis_json(diagnosis), indent=2))
    else:
        _show(diagnosis)


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """machine {processor, num_logical_cores, cpu_features, kernels, total_memory_bytes,
    available_memory_bytes, python_version, packages {name: version or null}, gpus [{name, sm, memory_bytes}],
    driver_version, cuda_version}, findings [{checkpoint, engine, verdict, reason, command}]."""
    machine = diagnosis.machine
    gpu_side = machine.gpu_side
    return {
        "machine": {
            "processor": machine.processor,
            "num_logical_cores": machine.num_logical_cores,
            "cpu_features": list(machine.cpu_features),
            "kernels": machine.kernels,
            "total_memory_bytes": machine.total_memory_bytes,
            "available_memory_bytes": machine.available_memory_bytes,
            "python_version": machine.python_version,
            "packages": dict(machine.packages),
            "gpus": [
                {"name": gpu.name, "sm": gpu.sm, "memory_bytes": gpu.memory_bytes} for gpu in gpu_side.gpus
            ],
            "driver_version": gpu_side.driver_version,
            "cuda_version": gpu_side.cuda_version,
        },
        "findings": [
            {
                "checkpoint": str(finding.checkpoint),
                "engine": finding.engine,
                "verdict": finding.fit.value,
                "reason": finding.reason,
                "command": finding.command,
            }
            for finding in diagnosis.findings
        ],
    }


def _show(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _machine_rows(diagnosis.machine):
        table.add_row(Text(label), Text(value))
    console.print(table)
    for checkpoint in dict.fromkeys(finding.checkpoint for finding in diagnosis.findings):
        console.print()
        console.print(Text(str(checkpoint)), soft_wrap=True)
        for finding in diagnosis.findings:
            if finding.checkpoint == checkpoint:
                line = f"  {finding.engine:<7} {finding.fit.value:<18} {finding.reason}"
                # Commands are there to be copied, so nothing is cut or wrapped.
                command = f"\n  {'':<7} {'':<18} $ {finding.command}" if finding.command else ""
                console.print(Text(line + command), soft_wrap=True)


def _machine_rows(machine: MachineReport) -> list[tuple[str, str]]:
    gpu_side = machine.gpu_side
    gpus = [
        f"{gpu.name}, SM {gpu.sm}, "
        + ("shares the machine's memory" if gpu.memory_bytes is None else _gib(gpu.memory_bytes))
        for gpu in gpu_side.gpus
    ]
    return [
        ("processor", f"{machine.processor}, {machine.num_logical_cores} logical cores"),
        ("cpu features", " ".join(machine.cpu_features) or "none that matter"),
        ("kernels", machine.kernels),
        (
            "memory",
            f"{_gib(machine.total_memory_bytes)}, {_gib(machine.available_memory_bytes)} of it available",
        ),
        ("gpu", "; ".join(gpus) or "none (nvidia-smi shows none)"),
        ("driver", gpu_side.driver_version or "none"),
        ("cuda", gpu_side.cuda_version or "not found"),
        ("python", machine.python_version),
        *((name, version or "not installed") for name, version in machine.packages),
    ]


def _gib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / _GIB:.1f} GiB"
