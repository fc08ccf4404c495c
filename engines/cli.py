"""The offline commands; they read checkpoints and serve nothing. `register` mounts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.checkpoint.inspection import Inspection
from engines.checkpoint.inspection import inspect as inspect_checkpoint
from engines.cli_bench import register as register_bench
from engines.cli_build import register as register_build
from engines.cli_convert import register as register_convert
from engines.cli_doctor import register as register_doctor
from engines.cli_evaluate import register as register_evaluate
from engines.cli_plan import register as register_plan
from engines.cli_quantize import register as register_quantize
from engines.errors import EngineError

_GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add the offline commands to `app`."""
    app.command("inspect")(inspect)
    register_quantize(app)
    register_evaluate(app)
    register_convert(app)
    register_doctor(app)
    register_build(app)
    register_plan(app)
    register_bench(app)


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face checkpoint directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a checkpoint and show its format, its size and the engines that can run it."""
    try:
        inspection = inspect_checkpoint(directory)
    except EngineError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(inspection_json(inspection), indent=2))
    else:
        _show(inspection)


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """The object `inspect --json` prints.

    Fields: directory, layout, producer, architecture, config (sizes of the model), num_parameters,
    num_fp4_modules, num_dense_modules, quantizes_activations, stored_bytes {fp4_codes, fp4_scales, dense,
    unused, total}, compression_ratio, ignored_modules, kv_cache, warnings, engines [{engine, runs, reason}].
    """
    config, stored = inspection.config, inspection.stored_bytes
    return {
        "directory": str(inspection.directory),
        "layout": inspection.layout.value,
        "producer": inspection.producer,
        "architecture": config.architecture,
        "config": {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "sliding_window": config.sliding_window,
            "num_experts": config.num_experts,
            "num_experts_per_token": config.num_experts_per_token,
            "tie_word_embeddings": config.tie_word_embeddings,
            "eos_token_ids": sorted(config.eos_token_ids),
        },
        "num_parameters": inspection.num_parameters,
        "num_fp4_modules": inspection.num_fp4_modules,
        "num_dense_modules": inspection.num_dense_modules,
        "quantizes_activations": inspection.quantizes_activations,
        "stored_bytes": {
            "fp4_codes": stored.fp4_codes,
            "fp4_scales": stored.fp4_scales,
            "dense": stored.dense,
            "unused": stored.unused,
            "total": stored.total,
        },
        "compression_ratio": round(inspection.compression_ratio, 3),
        "ignored_modules": list(inspection.ignored_modules),
        "kv_cache": inspection.kv_cache,
        "warnings": list(inspection.warnings),
        "engines": [
            {"engine": verdict.engine, "runs": verdict.runs, "reason": verdict.reason}
            for verdict in inspection.engines
        ],
    }


def _show(inspection: Inspection) -> None:
    console = Console(highlight=False)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _facts(inspection):
        facts.add_row(Text(label), Text(value))
    console.print(facts)
    engines = Table("engine", "runs here", "because", title="Engines", title_justify="left")
    for verdict in inspection.engines:
        engines.add_row(verdict.engine, "yes" if verdict.runs else "no", verdict.reason)
    console.print(engines)
    for warning in inspection.warnings:
        console.print(Text(f"warning: {warning}"))


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    config, stored = inspection.config, inspection.stored_bytes
    shape = (
        f"{config.num_layers} layers, hidden {config.hidden_size}, intermediate {config.intermediate_size}, "
        f"{config.num_heads} heads ({config.num_kv_heads} KV), head {config.head_dim}, "
        f"vocabulary {config.vocab_size}"
    )
    if config.num_experts:
        shape += f", {config.num_experts} experts ({config.num_experts_per_token} a token)"
    ignored = inspection.ignored_modules
    shown = ", ".join(ignored[:4]) + (f" and {len(ignored) - 4} more" if len(ignored) > 4 else "")
    return [
        ("checkpoint", str(inspection.directory)),
        ("layout", inspection.layout.value),
        ("written by", inspection.producer or "unknown"),
        ("architecture", config.architecture),
        ("shape", shape),
        (
            "context",
            f"{config.max_position_embeddings} tokens, sliding window {config.sliding_window or 'none'}",
        ),
        ("parameters", f"{inspection.num_parameters:,}"),
        ("modules", f"{inspection.num_fp4_modules} FP4, {inspection.num_dense_modules} dense"),
        ("activations", "quantised to FP4" if inspection.quantizes_activations else "not quantised"),
        ("FP4 codes", _size(stored.fp4_codes)),
        ("FP4 scales", _size(stored.fp4_scales)),
        ("dense", _size(stored.dense)),
        ("total", f"{_size(stored.total)}, {inspection.compression_ratio:.2f} times smaller than BF16"),
        ("not quantised", shown or "none"),
        ("KV cache", inspection.kv_cache or "not quantised"),
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes:,} bytes"


def _fail(error: EngineError) -> NoReturn:
    message = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
