"""`nybble plan`: how fast a checkpoint could be on a device, and how much fits, on paper."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.capacity.ceilings import Capacity, capacity
from engines.capacity.cpu_device import CpuMeasurement, cpu_device, measure_cpu, measured_device
from engines.capacity.devices import GPUS, Device, gpu_named
from engines.capacity.model_cost import KV_ELEMENT_BYTES, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import InvalidRequest

_CPU = "cpu"
_CONTEXTS = (1024, 4096, 8192, 32768)
_BATCH_SIZES = (1, 8, 32, 128)
_GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("plan")(plan_command)


def plan_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face checkpoint.")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="gb10, rtx6000-blackwell, b200, gb200 or cpu; may be repeated. [all]"),
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share each layer.")] = 1,
    kv_cache_dtype: Annotated[str, typer.Option(help="bfloat16 or fp8.")] = "bfloat16",
    context: Annotated[
        list[int] | None, typer.Option(help="Tokens of a sequence; may be repeated. [1024 to 32768]")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Sequences computed together; may be repeated. [1, 8, 32, 128]")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option(help="Measure this CPU for a few seconds, or assume. [measure when cpu is named]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Reckon the ceilings of speed and capacity on a device, from its bandwidth, arithmetic and memory."""
    _check(tensor_parallel, kv_cache_dtype, context, batch_size)
    checkpoint = Checkpoint.open(directory)
    contexts = tuple(context or _default_contexts(checkpoint.config.max_position_embeddings))
    too_long = [length for length in contexts if length > checkpoint.config.max_position_embeddings]
    if too_long:
        raise InvalidRequest(
            f"--context {too_long[0]}: the model has positions for "
            f"{checkpoint.config.max_position_embeddings} tokens"
        )
    names = target or [*(device.name for device in GPUS), _CPU]
    assumed = cpu_device() if _CPU in names else None
    if measure and assumed is None:
        raise InvalidRequest("--measure measures this CPU; add --target cpu")
    wants_measurement = bool(target and _CPU in target) if measure is None else measure
    measurement = measure_cpu() if wants_measurement else None
    reports = []
    for name in names:
        device: Device = _cpu(assumed, measurement) if name == _CPU and assumed else gpu_named(name)
        cost = model_cost(checkpoint, as_nvfp4=device.sm is not None)
        reports.append(
            capacity(
                cost,
                device,
                num_devices=1 if name == _CPU else tensor_parallel,
                kv_cache_dtype=kv_cache_dtype,
                contexts=contexts,
                batch_sizes=tuple(batch_size or _BATCH_SIZES),
            )
        )
    if as_json:
        typer.echo(json.dumps(plan_json(reports, assumed, measurement), indent=2))
    else:
        _show(reports, assumed, measurement)


def plan_json(
    reports: list[Capacity], assumed: Device | None, measurement: CpuMeasurement | None
) -> dict[str, Any]:
    """devices [Capacity], and when the CPU was measured cpu_measurement {read_bandwidth, fp4_flops,
    bf16_flops, and the same names with assumed_ before them}."""
    document: dict[str, Any] = {"devices": [asdict(report) for report in reports]}
    if measurement is not None and assumed is not None:
        document["cpu_measurement"] = {
            **asdict(measurement),
            "assumed_read_bandwidth": assumed.bandwidth,
            "assumed_fp4_flops": assumed.fp4_flops,
            "assumed_bf16_flops": assumed.bf16_flops,
        }
    return document


def _check(
    tensor_parallel: int, kv_cache_dtype: str, contexts: list[int] | None, batch_sizes: list[int] | None
) -> None:
    if kv_cache_dtype not in KV_ELEMENT_BYTES:
        known = ", ".join(KV_ELEMENT_BYTES)
        raise InvalidRequest(f"--kv-cache-dtype {kv_cache_dtype!r:.50} is unknown; expected one of: {known}")
    for name, numbers in (
        ("--tensor-parallel", [tensor_parallel]),
        ("--context", contexts or []),
        ("--batch-size", batch_sizes or []),
    ):
        if any(number < 1 for number in numbers):
            raise InvalidRequest(f"{name} is {min(numbers)}; expected at least 1")


def _default_contexts(max_position_embeddings: int) -> list[int]:
    return [length for length in _CONTEXTS if length <= max_position_embeddings] or [max_position_embeddings]


def _cpu(assumed: Device, measurement: CpuMeasurement | None) -> Device:
    return assumed if measurement is None else measured_device(assumed, measurement)


def _show(reports: list[Capacity], assumed: Device | None, measurement: CpuMeasurement | None) -> None:
    console = Console(highlight=False)
    for report in reports:
        console.print(Text(_headline(report)))
        table = Table("context", "fit at once", *_batch_headers(report), "prompt, tokens/s", "prompt, s")
        for index, (context, prefill) in enumerate(zip(report.contexts, report.prefill, strict=True)):
            row = [ceiling for ceiling in report.decode if ceiling.context == context]
            table.add_row(
                f"{context:,}",
                f"{report.num_sequences[index]:,}",
                *(
                    f"{ceiling.tokens_per_second:,.1f}" + ("" if ceiling.fits else " (does not fit)")
                    for ceiling in row
                ),
                f"{prefill.tokens_per_second:,.0f}",
                f"{prefill.seconds:,.4f}",
            )
        console.print(table)
    if measurement is not None and assumed is not None:
        console.print(
            Text(
                f"measured: {measurement.read_bandwidth / 1e9:.1f} GB/s read (assumed "
                f"{assumed.bandwidth / 1e9:.1f}), {measurement.fp4_flops / 1e12:.3f} T FP4 operations/s "
                f"(assumed {assumed.fp4_flops / 1e12:.3f}), {measurement.bf16_flops / 1e12:.3f} T others "
                f"(assumed {assumed.bf16_flops / 1e12:.3f})"
            )
        )
    source = "published numbers" if measurement is None else "published numbers, this CPU's from the measured"
    console.print(Text(f"ceilings from {source}, not measured speeds; see docs/capacity.md"))


def _headline(report: Capacity) -> str:
    device = report.device
    several = f"{report.num_devices} x " if report.num_devices > 1 else ""
    return (
        f"{several}{device.title}: {device.bandwidth / 1e9:,.0f} GB/s, "
        f"{device.fp4_flops / 1e12:,.2f} T FP4 operations/s, weights {report.weight_bytes / _GIB:.2f} of "
        f"{report.memory_bytes / _GIB:.2f} GiB, KV cache {report.kv_cache_bytes / _GIB:.2f} GiB = "
        f"{report.num_kv_tokens:,} tokens"
    )


def _batch_headers(report: Capacity) -> list[str]:
    sizes = dict.fromkeys(ceiling.num_sequences for ceiling in report.decode)
    return [f"{size} seq., tokens/s" for size in sizes]
