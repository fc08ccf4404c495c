"""`nybble perplexity` and `nybble compare`: the accuracy of a checkpoint on a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu import kernels
from engines.errors import InvalidRequest
from engines.evaluate.comparison import compare_models
from engines.evaluate.documents import Document, TextEncoder, read_documents, read_shared_documents
from engines.evaluate.gate import Thresholds
from engines.evaluate.logits import SequenceModel
from engines.evaluate.perplexity import Progress as OnProgress
from engines.evaluate.perplexity import measure_perplexity, num_positions
from engines.evaluate.windows import Windowing, choose_windowing
from engines.evaluation_report import comparison_json, perplexity_json, show_comparison, show_perplexity

GATE_FAILED_STATUS = 3
"""Exit status when a threshold is broken; errors have 1 and wrong usage 2."""

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a Hugging Face checkpoint.")]
_TextFile = Annotated[
    Path, typer.Option("--text", metavar="FILE", help="Plain text, or .jsonl of text, messages or input_ids.")
]
_Numerics = Annotated[str, typer.Option(help="fast or reference.")]
_KvCacheDtype = Annotated[str, typer.Option(help="auto, bfloat16 or fp8.")]
_Window = Annotated[int | None, typer.Option(help="Tokens seen at once. [2048, or the context if less]")]
_Stride = Annotated[int | None, typer.Option(help="Tokens between windows. [half the window]")]
_Threads = Annotated[int, typer.Option(help="0 means all physical cores.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("perplexity")(perplexity)
    app.command("compare")(compare)


def perplexity(
    directory: _Directory,
    text: _TextFile,
    activations: Annotated[str, typer.Option(help="checkpoint or bf16.")] = "checkpoint",
    numerics: _Numerics = "fast",
    kv_cache_dtype: _KvCacheDtype = "auto",
    window: _Window = None,
    stride: _Stride = None,
    num_threads: _Threads = 0,
    as_json: _AsJson = False,
) -> None:
    """Measure how well a checkpoint predicts a text."""
    _set_threads(num_threads)
    checkpoint = Checkpoint.open(directory)
    windowing = choose_windowing(checkpoint.config.max_position_embeddings, window, stride)
    documents = list(read_documents(text, TextEncoder(directory)))
    longest = _longest_window(documents, windowing)
    model = SequenceModel.load(
        checkpoint, longest, activations=activations, numerics=numerics, kv_cache_dtype=kv_cache_dtype
    )
    with _progress_bar("perplexity", documents, windowing) as progress:
        result = measure_perplexity(model, documents, windowing, progress)
    if as_json:
        settings = {"text": str(text), "numerics": numerics, **asdict(windowing)}
        about = {
            "directory": str(directory),
            "activations": activations,
            "kv_cache_dtype": kv_cache_dtype,
        }
        typer.echo(json.dumps({**about, **settings, **perplexity_json(result)}, indent=2))
        return
    settings_text = (
        ("window", f"{windowing.window} tokens, stride {windowing.stride}"),
        ("activations, numerics", f"{activations}, {numerics}"),
        ("KV cache", kv_cache_dtype),
    )
    show_perplexity(result, settings_text)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference, BF16 for instance.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The checkpoint to judge.")],
    text: _TextFile,
    activations_a: Annotated[str, typer.Option(help="checkpoint or bf16.")] = "checkpoint",
    activations_b: Annotated[str, typer.Option(help="checkpoint or bf16.")] = "checkpoint",
    numerics: _Numerics = "fast",
    window: _Window = None,
    stride: _Stride = None,
    max_kl: Annotated[float | None, typer.Option(help="Largest mean KL divergence, nats.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Smallest top-1 agreement, 0 to 1.")] = None,
    max_perplexity_ratio: Annotated[float | None, typer.Option(help="Largest perplexity B / A.")] = None,
    num_threads: _Threads = 0,
    as_json: _AsJson = False,
) -> None:
    """Judge checkpoint B by checkpoint A on a text; exit status 3 when a threshold is broken."""
    thresholds = Thresholds(max_kl, min_agreement, max_perplexity_ratio)
    _set_threads(num_threads)
    checkpoint_a, checkpoint_b = Checkpoint.open(a), Checkpoint.open(b)
    _require_equal_vocabularies(checkpoint_a, checkpoint_b)
    context = min(checkpoint.config.max_position_embeddings for checkpoint in (checkpoint_a, checkpoint_b))
    windowing = choose_windowing(context, window, stride)
    encoder_a, encoder_b = TextEncoder(a), TextEncoder(b)
    documents = list(read_shared_documents(text, encoder_a, encoder_b))
    longest = _longest_window(documents, windowing)
    model_a = SequenceModel.load(checkpoint_a, longest, activations=activations_a, numerics=numerics)
    model_b = SequenceModel.load(checkpoint_b, longest, activations=activations_b, numerics=numerics)
    with _progress_bar("compare", documents, windowing) as progress:
        result = compare_models(model_a, model_b, documents, windowing, progress)
    failures = thresholds.failures(result)
    encoder = encoder_a if encoder_a.available else encoder_b
    if as_json:
        settings = {"text": str(text), "numerics": numerics, **asdict(windowing)}
        names = ((a, activations_a), (b, activations_b))
        typer.echo(
            json.dumps(
                {**settings, **comparison_json(result, names, encoder), "failures": failures}, indent=2
            )
        )
    else:
        show_comparison(result, ((a, activations_a), (b, activations_b)), encoder, failures)
    if failures:
        raise typer.Exit(GATE_FAILED_STATUS)


def _longest_window(documents: list[Document], windowing: Windowing) -> int:
    """Tokens the KV cache has to hold: short texts need no long one."""
    return max(2, min(windowing.window, max(len(document.token_ids) for document in documents)))


def _require_equal_vocabularies(a: Checkpoint, b: Checkpoint) -> None:
    if a.config.vocab_size != b.config.vocab_size:
        raise InvalidRequest(
            f"{a.directory} has a vocabulary of {a.config.vocab_size} tokens and {b.directory} one of "
            f"{b.config.vocab_size}; only models over the same vocabulary can be compared"
        )


def _set_threads(num_threads: int) -> None:
    if not 0 <= num_threads <= 1024:
        raise InvalidRequest(f"num_threads is {num_threads}; expected 0 (all physical cores) to 1024")
    if num_threads:
        kernels.set_num_threads(num_threads)


@contextmanager
def _progress_bar(label: str, documents: list[Document], windowing: Windowing) -> Iterator[OnProgress]:
    """A bar on standard error with tokens per second; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} / {task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=num_positions(documents, windowing), rate="")

        def advance(num_tokens: int) -> None:
            bar.advance(task, num_tokens)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} tokens/s" if speed else "")

        yield advance
