"""The accuracy of a checkpoint as `nybble perplexity` and `nybble compare` report it: JSON, or tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.evaluate.comparison import ComparisonResult, Divergence
from engines.evaluate.documents import TextEncoder
from engines.evaluate.perplexity import PerplexityResult


def perplexity_json(result: PerplexityResult) -> dict[str, Any]:
    """perplexity (null beyond float64), mean_nll (nats per token), num_scored_tokens, num_computed_tokens,
    num_documents, seconds, tokens_per_second."""
    return {
        **asdict(result),
        "perplexity": result.perplexity if math.isfinite(result.perplexity) else None,
        "seconds": round(result.seconds, 3),
        "tokens_per_second": round(result.tokens_per_second, 1),
    }


def comparison_json(
    result: ComparisonResult, names: tuple[tuple[Path, str], tuple[Path, str]], encoder: TextEncoder
) -> dict[str, Any]:
    """a, b {directory, activations, and as perplexity_json}, perplexity_ratio, mean_kl, p99_kl, max_kl (KL of
    A to B, nats), agreement, max_logit_difference, first_divergence {source, position, token, a, b {id,
    text}} or null."""
    sides = {
        side: {"directory": str(path), "activations": activations, **perplexity_json(measured)}
        for side, (path, activations), measured in zip("ab", names, (result.a, result.b), strict=True)
    }
    divergence = result.first_divergence
    return {
        **sides,
        "perplexity_ratio": result.perplexity_ratio,
        "mean_kl": result.mean_kl,
        "p99_kl": result.p99_kl,
        "max_kl": result.max_kl,
        "agreement": result.agreement,
        "max_logit_difference": result.max_logit_difference,
        "first_divergence": None if divergence is None else _divergence_json(divergence, encoder),
    }


def show_perplexity(result: PerplexityResult, settings: Iterable[tuple[str, str]]) -> None:
    """One checkpoint's figures; `settings` are label and value of how they were got."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in (
        ("perplexity", f"{result.perplexity:.4f}"),
        ("mean negative log-likelihood", f"{result.mean_nll:.6f} nats per token"),
        ("scored", _scored(result)),
        *settings,
        ("speed", _speed(result)),
    ):
        table.add_row(Text(label), Text(value))
    Console(highlight=False).print(table)


def show_comparison(
    result: ComparisonResult,
    names: tuple[tuple[Path, str], tuple[Path, str]],
    encoder: TextEncoder,
    failures: tuple[str, ...],
) -> None:
    """Two checkpoints beside each other, how they differ, and the thresholds that are broken."""
    console = Console(highlight=False)
    sides = Table("", "checkpoint", "activations", "perplexity", "speed", box=None, pad_edge=False)
    for side, (path, activations), measured in zip("AB", names, (result.a, result.b), strict=True):
        sides.add_row(side, Text(str(path)), activations, f"{measured.perplexity:.4f}", _speed(measured))
    console.print(sides)
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in (
        ("scored", _scored(result.a)),
        ("perplexity B / A", f"{result.perplexity_ratio:.6f}"),
        (
            "KL(A||B), nats per token",
            f"mean {result.mean_kl:.6f}, 99th percentile {result.p99_kl:.6f}, largest {result.max_kl:.6f}",
        ),
        ("top-1 agreement", f"{100 * result.agreement:.3f} %"),
        ("largest logit difference", f"{result.max_logit_difference:.6g}"),
        ("first divergence", _divergence_text(result.first_divergence, encoder)),
    ):
        table.add_row(Text(label), Text(value))
    console.print(table)
    for failure in failures:
        console.print(Text(f"failed: {failure}"))


def _divergence_text(divergence: Divergence | None, encoder: TextEncoder) -> str:
    if divergence is None:
        return "none"
    shown = [
        f"{name} {token} {encoder.token_text(token)!r}"
        for name, token in (
            ("text has", divergence.token_id),
            ("A expects", divergence.token_id_a),
            ("B expects", divergence.token_id_b),
        )
    ]
    return f"{divergence.source}, position {divergence.position}: {', '.join(shown)}"


def _scored(result: PerplexityResult) -> str:
    texts = "document" if result.num_documents == 1 else "documents"
    return f"{result.num_scored_tokens:,} tokens of {result.num_documents:,} {texts}"


def _speed(result: PerplexityResult) -> str:
    return f"{result.tokens_per_second:,.0f} tokens/s"


def _divergence_json(divergence: Divergence, encoder: TextEncoder) -> dict[str, Any]:
    tokens = {"token": divergence.token_id, "a": divergence.token_id_a, "b": divergence.token_id_b}
    return {
        "source": divergence.source,
        "position": divergence.position,
        **{name: {"id": token, "text": encoder.token_text(token)} for name, token in tokens.items()},
    }
