"""`nybble build`: from a checkpoint to a directory that TensorRT-LLM can serve."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from engines.quantize.options import CalibrationOptions
from engines.trtllm.build import BuildResult, build
from engines.trtllm.build_plan import BuildPlan, make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.build_stages import BuildEvents
from engines.trtllm.machine import detect_machine
from engines.trtllm.manifest import Manifest

_GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("build")(build_command)


def build_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of an FP4 checkpoint.")],
    destination: Annotated[Path, typer.Argument(metavar="ENGINE_DIR", help="Folder to make.")],
    target: Annotated[str, typer.Option(help="auto, gb10, rtx6000-blackwell, b200 or gb200.")] = "auto",
    path: Annotated[str, typer.Option(help="auto, engine (trtllm-build) or pytorch.")] = "auto",
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share each layer.")] = 1,
    max_batch_size: Annotated[int | None, typer.Option(help="Sequences computed together. [64]")] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(help="Prompt and answer together. [the model's, at most 32768]")
    ] = None,
    max_num_tokens: Annotated[int | None, typer.Option(help="Tokens of one step. [8192]")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16 or fp8.")] = "auto",
    logprobs: Annotated[
        str, typer.Option(help="Of a TensorRT engine: none, generated, or all (the prompt's too).")
    ] = "none",
    tensorrt_llm_version: Annotated[
        str | None, typer.Option(help="Release to build for. [the installed one]")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of text, messages or input_ids, for input scales."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Lines of FILE to use.")] = 512,
    max_length: Annotated[int, typer.Option(help="Tokens of a line to use.")] = 2048,
    canaries: Annotated[int, typer.Option(help="Prompts the CPU engine answers for the manifest.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Make a folder that TensorRT-LLM can serve: plan, convert, build, verify, manifest."""
    machine = detect_machine()
    request = BuildRequest(
        source=source,
        destination=destination,
        target=target,
        path=path,
        tensor_parallel=tensor_parallel,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        kv_cache_dtype=kv_cache_dtype,
        logprobs=logprobs,
        tensorrt_llm_version=tensorrt_llm_version,
        calibration=None if calibration is None else CalibrationOptions(calibration, samples, max_length),
        num_canaries=canaries,
    )
    plan = make_build_plan(request, machine)
    if not as_json:
        _show_plan(plan)
    if dry_run:
        if as_json:
            typer.echo(json.dumps({"plan": plan_json(plan)}, indent=2))
        return
    with _events() as events:
        result = build(plan, machine, events)
    if as_json:
        typer.echo(json.dumps({"plan": plan_json(plan), "result": result_json(result)}, indent=2))
    else:
        _show_result(result, destination)


def plan_json(plan: BuildPlan) -> dict[str, Any]:
    """source, source_layout, destination, target {name, sm}, tensorrt_llm_version, path, path_reason,
    options, memory (MemoryBudget and num_kv_tokens), convert, argv, llm_options, steps, notes."""
    conversion = plan.conversion
    return {
        "source": str(plan.request.source),
        "source_layout": plan.checkpoint.layout.value,
        "destination": str(plan.request.destination),
        "target": {"name": plan.device.name, "sm": plan.device.sm},
        "tensorrt_llm_version": str(plan.version),
        "path": plan.path,
        "path_reason": plan.path_reason,
        "options": asdict(plan.options),
        "memory": {**asdict(plan.budget), "num_kv_tokens": plan.budget.num_kv_tokens},
        "convert": None if conversion is None else conversion.target.value,
        "argv": list(plan.argv),
        "llm_options": plan.llm_options,
        "steps": list(plan.steps),
        "notes": list(plan.notes),
    }


def result_json(result: BuildResult) -> dict[str, Any]:
    """was_current, resumed, build_key, source_digest, num_files, num_bytes, num_canaries, notes."""
    manifest = result.manifest
    return {
        "was_current": result.was_current,
        "resumed": list(result.resumed),
        "build_key": manifest.build_key,
        "source_digest": manifest.source_digest,
        "num_files": len(manifest.files),
        "num_bytes": _num_bytes(manifest),
        "num_canaries": len(manifest.canaries),
        "notes": list(manifest.notes),
    }


def _show_plan(plan: BuildPlan) -> None:
    console = Console(highlight=False)
    budget, options = plan.budget, plan.options
    num_full = budget.num_kv_tokens // options.max_seq_len
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = [
        ("source", f"{plan.request.source} ({plan.checkpoint.layout.value})"),
        ("target", f"{plan.device.title} (SM {plan.device.sm}), tensor parallel {options.tensor_parallel}"),
        ("TensorRT-LLM", str(plan.version)),
        ("path", f"{plan.path}: {plan.path_reason}"),
        (
            "limits",
            f"{options.max_batch_size} sequences, {options.max_seq_len:,} tokens each, "
            f"{options.max_num_tokens:,} tokens a step, KV cache in {options.kv_cache_dtype}",
        ),
        ("memory per GPU", _memory(plan)),
        (
            "KV cache",
            f"{_gib(budget.kv_cache_bytes)}: {budget.num_kv_tokens:,} tokens of "
            f"{budget.kv_bytes_per_token:,} bytes, {num_full:,} sequences of full length",
        ),
        *((f"step {number}", step) for number, step in enumerate(plan.steps, 1)),
        ("command" if plan.path == "engine" else "to serve", shlex.join(plan.argv)),
        *(("note", note) for note in plan.notes),
    ]
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console.print(table)


def _memory(plan: BuildPlan) -> str:
    budget = plan.budget
    host = f", operating system and service {_gib(budget.host_bytes)}" if budget.host_bytes else ""
    kind = "unified, counted once: " if plan.device.unified_memory else ""
    return (
        f"{kind}{_gib(budget.total_bytes)}; weights {_gib(budget.weight_bytes)}, activations "
        f"{_gib(budget.activation_bytes)}, runtime {_gib(budget.runtime_bytes)}{host}"
    )


def _show_result(result: BuildResult, destination: Path) -> None:
    manifest = result.manifest
    if result.was_current:
        typer.echo(f"{destination} is up to date (build {manifest.build_key[:12]})")
        return
    resumed = f", resumed after {', '.join(result.resumed)}" if result.resumed else ""
    typer.echo(
        f"{destination}: {len(manifest.files)} files, {_gib(_num_bytes(manifest))}, "
        f"{len(manifest.canaries)} canaries, build {manifest.build_key[:12]}{resumed}"
    )
    typer.echo(f"serve it: nybble serve {destination} --engine trtllm")


def _num_bytes(manifest: Manifest) -> int:
    return sum(record.num_bytes for record in manifest.files)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


@contextmanager
def _events() -> Iterator[BuildEvents]:
    """Stages, bars and trtllm-build's last line on standard error; plain lines where that is no terminal."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:

        def stage(name: str) -> None:
            console.print(Text(f"{name} ..."))

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        def line(text: str) -> None:
            console.print(Text(text))

        yield BuildEvents(stage, progress, line)
