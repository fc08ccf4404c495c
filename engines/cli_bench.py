"""`nybble bench`: how fast a checkpoint runs on this machine, beside what the machine allows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engines.base import EngineOptions
from engines.bench.peers.catalogue import FAMILIES, PEER_MODELS, Choice, checked_families, parsed_pythons
from engines.bench.peers.compare import compare_with_peers
from engines.bench.peers.comparison import SystemResult
from engines.bench.peers.report import comparison_json, show_comparison
from engines.bench.phase import Workload
from engines.bench.plot import save_plot, show_bars
from engines.bench.record import BenchmarkRecord, document_text
from engines.bench.report import benchmark_json, show
from engines.bench.run import BenchmarkResult, run_benchmark
from engines.errors import InvalidRequest


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench")(bench)


def bench(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face checkpoint.")],
    activations: Annotated[str, typer.Option(help="checkpoint or bf16.")] = "checkpoint",
    numerics: Annotated[str, typer.Option(help="fast or reference.")] = "fast",
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bfloat16 or fp8.")] = "auto",
    num_threads: Annotated[int, typer.Option(help="0 means all physical cores.", min=0)] = 0,
    prefill_tokens: Annotated[int, typer.Option(help="Tokens of the prompt that is prefilled.", min=1)] = 512,
    decode_tokens: Annotated[int, typer.Option(help="Tokens every stream generates.", min=2)] = 64,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Streams at a time; may be repeated. [1, 8, 16]", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each phase; the median counts.", min=1)] = 3,
    kernels: Annotated[bool, typer.Option(help="Measure the linear layers by themselves too.")] = True,
    http: Annotated[bool, typer.Option(help="Measure a `nybble serve` over HTTP too.")] = True,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write throughput and latency against concurrency.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Measure other systems too, in turn with this one.")] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"One of {', '.join(FAMILIES)}; may be repeated. [all]"),
    ] = None,
    peer_python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PYTHON", help="Interpreter in which a peer is installed; may be repeated."
        ),
    ] = None,
    peer_models: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the model is kept in the peers' formats.")
    ] = PEER_MODELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure linear layers, prefill, decode and the HTTP service, each beside the machine's own limit."""
    workload = Workload(
        num_prefill_tokens=prefill_tokens,
        num_decode_tokens=decode_tokens,
        concurrencies=tuple(sorted(set(concurrency or (1, 8, 16)))),
        num_repeats=repeats,
    )
    options = EngineOptions(
        checkpoint=directory,
        activations=activations,
        numerics=numerics,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=num_threads,
        max_model_len=None,
    )
    choice = _choice(peers, peer or [], peer_python or [], peer_models)
    record = BenchmarkRecord("nybble", sys.argv[1:])
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = run_benchmark(
            options, workload, with_kernels=kernels, over_http=http, on_progress=status.update
        )
        compared = None
        if choice is not None:
            compared = compare_with_peers(
                [directory], choice, workload, num_threads=num_threads, on_progress=status.update
            )
    if plot is not None and result.http:
        save_plot(result.http, f"{directory.resolve().name} on {result.machine_title}", plot)
    if as_json:
        typer.echo(document_text(record.document(_figures(result, compared, workload))))
    else:
        _show(result, compared, Console(highlight=False))


def _choice(peers: bool, names: list[str], pythons: list[str], models: Path) -> Choice | None:
    if peers:
        return Choice(models, checked_families(names), parsed_pythons(pythons))
    if names or pythons:
        raise InvalidRequest("--peer and --peer-python choose among the systems of --peers, which is missing")
    return None


def _figures(
    result: BenchmarkResult, compared: Sequence[SystemResult] | None, workload: Workload
) -> dict[str, Any]:
    figures = benchmark_json(result)
    if compared is not None:
        figures["peers"] = comparison_json(compared, result.machine, workload)
    return figures


def _show(result: BenchmarkResult, compared: Sequence[SystemResult] | None, console: Console) -> None:
    show(result, console)
    if result.http:
        show_bars(result.http, console)
    if compared is not None:
        show_comparison(compared, console)
