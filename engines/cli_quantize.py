"""`nybble quantize`: options in, a progress bar, a closing table or JSON out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from engines.errors import EngineError
from engines.quantize.options import DEFAULT_SHARD_BYTES, CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import Progress as RunProgress
from engines.quantize.quantizer import ProgressListener, quantize
from engines.quantize.report import QuantizeReport

_NUM_WORST = 5
_MAX_STAGE_ROWS = 48
_GIB = 1024**3


class Format(str, Enum):
    """Values of --format."""

    mxfp4 = "mxfp4"
    nvfp4 = "nvfp4"


class LayoutName(str, Enum):
    """Values of --layout."""

    compressed_tensors = "compressed-tensors"
    modelopt = "modelopt"


class Method(str, Enum):
    """Values of --method."""

    rtn = "rtn"
    four_over_six = "four-over-six"
    mse = "mse"
    gptq = "gptq"


def register(app: typer.Typer) -> None:
    """Add `quantize` to `app`."""
    app.command("quantize")(quantize_command)


def quantize_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A BF16 or FP16 Hugging Face directory.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The FP4 checkpoint to make.")],
    format: Annotated[Format, typer.Option(help="The number format of the weights.")],
    layout: Annotated[
        LayoutName, typer.Option(help="The library whose files to write; modelopt is for nvfp4 only.")
    ] = LayoutName.compressed_tensors,
    method: Annotated[
        Method, typer.Option(help="How weights are rounded; see docs/quantization.md.")
    ] = Method.rtn,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help="Samples, one JSON object a line: text, messages or input_ids."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the file to use.")] = 512,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a sample to use.")] = 2048,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Modules to leave unquantised: a name, a wildcard, or re:..."),
    ] = None,
    shard_bytes: Annotated[
        int, typer.Option(min=1, help="Largest size of an output file of several layers.")
    ] = DEFAULT_SHARD_BYTES,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 means one per physical core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantise a checkpoint to FP4. An interrupted run continues when the command is repeated."""
    options = QuantizeOptions(
        source=source,
        destination=destination,
        format=format.value,
        layout=layout.value,
        method=method.value,
        calibration=None if calibration is None else CalibrationOptions(calibration, samples, max_length),
        ignore=tuple(ignore or ()),
        shard_bytes=shard_bytes,
        num_threads=threads,
    )
    try:
        with _progress_bar() as listener:
            report = quantize(options, listener)
    except EngineError as error:
        message = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        show_report(report, Console(highlight=False))


@contextmanager
def _progress_bar() -> Iterator[ProgressListener]:
    """On standard error, so that --json stays clean; silent when that is no terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("opening", total=None)

        def listener(progress: RunProgress) -> None:
            bar.update(
                task, completed=progress.completed, total=progress.total, description=progress.activity
            )

        yield listener


def show_report(report: QuantizeReport, console: Console) -> None:
    """The closing tables: sizes, error per layer, worst modules."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _facts(report):
        facts.add_row(Text(label), Text(value))
    console.print(facts)
    if len(report.stages) <= _MAX_STAGE_ROWS:
        layers = Table("layer", "weight error", "output error", title="Error by layer", title_justify="left")
        for stage in report.stages:
            layers.add_row(stage.name, _percent(stage.weight_error), _percent(stage.output_error))
        console.print(layers)
    worst = Table("module", "weight error", "output error", title="Largest errors", title_justify="left")
    for module in report.worst(_NUM_WORST):
        worst.add_row(Text(module.name), _percent(module.weight_error), _percent(module.output_error))
    console.print(worst)


def _facts(report: QuantizeReport) -> list[tuple[str, str]]:
    speed = report.num_parameters / max(report.seconds, 1e-9)
    calibration = "none"
    if report.num_calibration_samples:
        calibration = f"{report.num_calibration_samples} samples, {report.num_calibration_tokens:,} tokens"
    facts = [
        ("checkpoint", report.destination),
        ("format", f"{report.format}, {report.layout} layout, {report.method}"),
        ("parameters", f"{report.num_parameters:,}, of which {report.num_quantized_parameters:,} in FP4"),
        ("calibration", calibration),
        (
            "size",
            f"{_size(report.source_bytes)} -> {_size(report.output_bytes)}, "
            f"{report.compression_ratio:.2f} times smaller, {report.num_files} "
            f"{'file' if report.num_files == 1 else 'files'}",
        ),
        ("time", f"{report.seconds:.1f} s, {speed / 1e6:.1f} million parameters a second"),
    ]
    if report.num_resumed_stages:
        facts.append(("continued", f"after {report.num_resumed_stages} stages of an interrupted run"))
    return facts


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.3f} %"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.2f} MiB"
