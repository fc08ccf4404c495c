"""Quantise a BF16 master by every format and method; judge each result beside the master.

    python -m benchmarks.accuracy.compare_methods MASTER [--students DIR ...] [--peer-python PYTHON]
        [--samples 256] [--output FILE.json]

For each checkpoint, with activations as declared (W4A4) and unrounded (W4A16): perplexity on held-out text,
the part of the gap between BF16 and round-to-nearest that the method closes, KL divergence from BF16, and how
many held-out questions are answered right to the letter, task by task. BF16 is MASTER, for students too.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.accuracy.candidates import LAYOUTS, Candidate, Sources, candidates
from benchmarks.accuracy.demo_text import held_out_ids
from engines.bench.record import write_document
from engines.evaluate.comparison import compare_models
from engines.evaluate.documents import Document
from engines.evaluate.logits import open_model
from engines.evaluate.windows import choose_windowing
from examples.demo_model.calibration import write_calibration
from examples.demo_model.evaluate import evaluate

Row = dict[str, Any]


def main() -> None:
    """Run the comparison and print a table; with --output also write JSON."""
    arguments = _arguments()
    begun = record.begin("benchmarks.accuracy.compare_methods")
    documents = [
        Document(f"held-out {number}", tuple(ids))
        for number, ids in enumerate(held_out_ids(arguments.master), 1)
    ]
    rows = [_of_master(arguments)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = folder / "calibration.jsonl"
        write_calibration(arguments.master, samples, arguments.samples)
        sources = Sources(
            arguments.master, tuple(arguments.students), samples, arguments.samples, arguments.peer_python
        )
        for format in arguments.formats:
            for candidate in candidates(sources, format, folder):
                rows += _judge(arguments, candidate, documents)
    rows[0]["perplexity"] = rows[-1]["perplexity_bf16"]
    add_closed_gap(rows)
    for row in rows:
        print(_line(row))
    if arguments.output:
        figures = {
            "master": arguments.master.name,
            "num_samples": arguments.samples,
            "num_tokens": sum(len(document.token_ids) for document in documents),
            "rows": rows,
        }
        write_document(begun.document(figures), arguments.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("master", type=Path)
    parser.add_argument("--students", nargs="+", type=Path, default=[], help="made by distill.py from MASTER")
    parser.add_argument("--peer-python", type=Path, help="a Python that has llm-compressor and modelopt")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--per-task", type=int, default=40)
    parser.add_argument("--formats", nargs="+", default=list(LAYOUTS))
    record.add_output_option(parser)
    return parser.parse_args()


def _of_master(arguments: argparse.Namespace) -> Row:
    row: Row = {
        "format": "bf16",
        "method": "",
        "activations": "bf16",
        "num_bytes": _num_bytes(arguments.master),
    }
    return row | _exact(arguments, arguments.master, "bf16")


def _judge(arguments: argparse.Namespace, made: Candidate, documents: Sequence[Document]) -> list[Row]:
    longest = max(len(document.token_ids) for document in documents)
    windowing = choose_windowing(longest, longest, None)
    rows = []
    for activations in ("checkpoint", "bf16"):
        master = open_model(arguments.master, longest, activations="bf16", numerics="reference")
        model = open_model(made.directory, longest, activations=activations, numerics="reference")
        result = compare_models(master, model, documents, windowing)
        row: Row = {
            "format": made.format,
            "method": made.method,
            "activations": activations,
            "perplexity_bf16": result.a.perplexity,
            "perplexity": result.b.perplexity,
            "mean_kl": result.mean_kl,
            "agreement": result.agreement,
            "seconds": round(made.seconds, 2),
            "num_bytes": _num_bytes(made.directory),
        }
        rows.append(row | _exact(arguments, made.directory, activations))
        print(_line(rows[-1]), flush=True)
    return rows


def _exact(arguments: argparse.Namespace, directory: Path, activations: str) -> Row:
    report = asyncio.run(
        evaluate(
            directory,
            activations=activations,
            numerics="reference",
            per_task=arguments.per_task,
            num_documents=1,
        )
    )
    return {"exact": report.exact, "tasks": report.tasks}


def add_closed_gap(rows: Sequence[Row]) -> None:
    """The shares of round-to-nearest's loss, in perplexity and in divergence, that a method takes back."""
    base = {(row["format"], row["activations"]): row for row in rows if row["method"] == "rtn"}
    for row in rows:
        rtn = base.get((row["format"], row["activations"]))
        if rtn is not None:
            gap = rtn["perplexity"] - rtn["perplexity_bf16"]
            row["gap_closed"] = (rtn["perplexity"] - row["perplexity"]) / gap if gap > 0 else None
            row["kl_closed"] = 1 - row["mean_kl"] / rtn["mean_kl"]


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _line(row: Row) -> str:
    parts = [f"{row['format']:5} {row['method']:20} {row['activations']:10}"]
    if "perplexity" in row:
        parts.append(f"perplexity {row['perplexity']:.4f}")
    if "mean_kl" in row:
        parts.append(f"KL {row['mean_kl']:.5f}")
    parts.append(f"exact {row['exact']:.1%}")
    if row.get("gap_closed") is not None:
        parts.append(f"gap closed {row['gap_closed']:.0%}, KL closed {row['kl_closed']:.0%}")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
