"""`nybble convert`: an FP4 checkpoint into another FP4 layout, without changing its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from engines.convert.conversion import ConversionReport, Progress, convert
from engines.convert.options import ConvertOptions, Target
from engines.errors import InvalidRequest
from engines.quantize.options import CalibrationOptions

_UNITS = {"calibrate": "tokens", "convert": "bytes"}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("convert")(convert_command)


def convert_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of an FP4 checkpoint.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to make; must not exist.")],
    to: Annotated[str, typer.Option("--to", help="nvfp4-modelopt or nvfp4-compressed-tensors.")],
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of text, messages or input_ids, for input scales."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Lines of FILE to use. [512]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a line to use. [2048]")] = None,
    weight_only: Annotated[
        bool, typer.Option(help="Leave activations unquantised: no input scales.")
    ] = False,
    lossy: Annotated[
        bool, typer.Option(help="Accept weights that change; the report says by how much.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Convert an FP4 checkpoint to NVFP4 in another layout; decoded weights stay bit-equal or it refuses."""
    target = Target.parse(to)
    chosen = None
    if calibration is not None:
        chosen = CalibrationOptions(
            calibration, 512 if samples is None else samples, 2048 if max_length is None else max_length
        )
    elif samples is not None or max_length is not None:
        raise InvalidRequest(
            "--samples and --max-length belong to --calibration FILE.jsonl, which is missing"
        )
    options = ConvertOptions(source, destination, target, chosen, weight_only=weight_only, lossy=lossy)
    with _progress_bar() as progress:
        report = convert(options, progress)
    if as_json:
        typer.echo(json.dumps(report_json(report, options), indent=2))
    else:
        _show(report, options)


def report_json(report: ConversionReport, options: ConvertOptions) -> dict[str, Any]:
    """source, destination, source_layout, target, num_fp4_modules, num_dense_modules, num_equal_in_float32,
    num_equal_in_bfloat16, max_span (of MXFP4 exponents in a fused group, or null), calibrated, output_bytes,
    seconds, left_out, changed [{name, equal_in_bfloat16, max_error, relative_error}] (weights whose decoded
    float32 numbers differ)."""
    return {
        "source": str(options.source),
        "destination": str(options.destination),
        "source_layout": report.source_layout,
        "target": report.target.value,
        "num_fp4_modules": len(report.weights),
        "num_dense_modules": report.num_dense_modules,
        "num_equal_in_float32": report.num_equal_in_float32,
        "num_equal_in_bfloat16": report.num_equal_in_bfloat16,
        "max_span": report.max_span,
        "calibrated": report.calibrated,
        "output_bytes": report.output_bytes,
        "seconds": round(report.seconds, 3),
        "left_out": list(report.left_out),
        "changed": [
            {
                "name": weight.name,
                "equal_in_bfloat16": weight.difference.equal_in_bfloat16,
                "max_error": weight.difference.max_error,
                "relative_error": weight.difference.relative_error,
            }
            for weight in report.weights
            if not weight.difference.equal_in_float32
        ],
    }


def _show(report: ConversionReport, options: ConvertOptions) -> None:
    num_weights = len(report.weights)
    rows = [
        ("from", f"{options.source} ({report.source_layout})"),
        ("to", f"{options.destination} ({report.target.value})"),
        ("size", f"{report.output_bytes:,} bytes in {report.seconds:.1f} s"),
        ("weights compared", f"{num_weights} FP4 ({report.num_dense_modules} modules copied as they are)"),
        ("bit-equal in float32", f"{report.num_equal_in_float32} of {num_weights}"),
        ("bit-equal in bfloat16", f"{report.num_equal_in_bfloat16} of {num_weights}"),
    ]
    if report.max_span is not None:
        rows.append(
            ("block scales", f"span at most {report.max_span} binades in a fused group; 17 are exact")
        )
    worst = report.worst
    if worst is not None:
        difference = worst.difference
        rows.append(
            (
                "largest change",
                f"{worst.name}: {difference.relative_error:.2e} relative, {difference.max_error:.3g} at most",
            )
        )
    if report.left_out:
        more = f" and {len(report.left_out) - 3} more" if len(report.left_out) > 3 else ""
        rows.append(("left out", ", ".join(report.left_out[:3]) + more))
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    Console(highlight=False).print(table)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Bars on standard error, one for each phase; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} / {task.total:,.0f} {task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with ProgressBar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, unit=_UNITS[phase])
            bar.update(tasks[phase], completed=done)

        yield show
