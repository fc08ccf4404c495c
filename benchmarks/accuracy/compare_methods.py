"""Quantise a BF16 master by every format and method; compare each result with the master on held-out text.

    python -m benchmarks.accuracy.compare_methods MASTER [--samples 256] [--output FILE.json]

For each checkpoint and both activation modes: perplexity, the part of the perplexity gap between BF16 and
round-to-nearest that the method closes, KL divergence from BF16, and agreement of the likeliest token.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.demo_text import held_out_ids
from engines.evaluate.comparison import compare_models
from engines.evaluate.documents import Document
from engines.evaluate.logits import open_model
from engines.evaluate.windows import choose_windowing
from engines.quantize.options import METHODS, CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import quantize
from examples.demo_model.calibration import write_calibration

_LAYOUTS = {"mxfp4": "compressed-tensors", "nvfp4": "compressed-tensors"}


def main() -> None:
    """Run the comparison and print a table; with --output also write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("master", type=Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--formats", nargs="+", default=["mxfp4", "nvfp4"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--activations", nargs="+", default=["checkpoint", "bf16"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    documents = [
        Document(f"held-out {number}", tuple(ids))
        for number, ids in enumerate(held_out_ids(arguments.master), 1)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.jsonl"
        write_calibration(arguments.master, calibration, arguments.samples)
        for format in arguments.formats:
            for method in arguments.methods:
                if (format, method) != ("mxfp4", "four-over-six"):
                    rows += _measure(arguments, format, method, calibration, Path(folder), documents)
    _add_closed_gap(rows)
    for row in rows:
        print(_line(row))
    if arguments.output:
        report = {
            "master": arguments.master.name,
            "num_samples": arguments.samples,
            "num_tokens": sum(len(document.token_ids) for document in documents),
            "command": f"python -m benchmarks.accuracy.compare_methods {_options()}",
            "commit": _commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def _measure(
    arguments: argparse.Namespace,
    format: str,
    method: str,
    calibration: Path,
    folder: Path,
    documents: list[Document],
) -> list[dict[str, Any]]:
    checkpoint = folder / f"{format}-{method}"
    options = QuantizeOptions(
        arguments.master,
        checkpoint,
        format,
        _LAYOUTS[format],
        method,
        CalibrationOptions(calibration, arguments.samples),
    )
    started = time.monotonic()
    report = quantize(options)
    seconds = time.monotonic() - started
    longest = max(len(document.token_ids) for document in documents)
    windowing = choose_windowing(longest, longest, None)
    rows = []
    for activations in arguments.activations:
        master = open_model(arguments.master, longest, activations="bf16", numerics="reference")
        made = open_model(checkpoint, longest, activations=activations, numerics="reference")
        result = compare_models(master, made, documents, windowing)
        rows.append(
            {
                "format": format,
                "method": method,
                "activations": activations,
                "perplexity_bf16": result.a.perplexity,
                "perplexity": result.b.perplexity,
                "mean_kl": result.mean_kl,
                "agreement": result.agreement,
                "output_error": float(np.mean([stage.output_error or 0.0 for stage in report.stages])),
                "seconds": seconds,
                "output_bytes": report.output_bytes,
            }
        )
        print(_line(rows[-1]), flush=True)
    return rows


def _add_closed_gap(rows: list[dict[str, Any]]) -> None:
    """The share of round-to-nearest's loss of perplexity that a method takes back."""
    base = {(row["format"], row["activations"]): row for row in rows if row["method"] == "rtn"}
    for row in rows:
        rtn = base.get((row["format"], row["activations"]))
        if rtn is not None:
            gap = rtn["perplexity"] - rtn["perplexity_bf16"]
            row["gap_closed"] = (rtn["perplexity"] - row["perplexity"]) / gap if gap > 0 else None
            row["kl_closed"] = 1 - row["mean_kl"] / rtn["mean_kl"]


def _options() -> str:
    """The command line, with the master by its name only."""
    return " ".join(Path(word).name if Path(word).is_dir() else word for word in sys.argv[1:])


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _line(row: dict[str, Any]) -> str:
    closed = "" if row.get("gap_closed") is None else f" gap closed {100 * row['gap_closed']:6.1f} %"
    closed += "" if row.get("kl_closed") is None else f" KL closed {100 * row['kl_closed']:6.1f} %"
    return (
        f"{row['format']} {row['method']:14} {row['activations']:10} "
        f"perplexity {row['perplexity']:.4f} (BF16 {row['perplexity_bf16']:.4f}) "
        f"KL {row['mean_kl']:.5f} agreement {100 * row['agreement']:.2f} % {row['seconds']:.1f} s{closed}"
    )


if __name__ == "__main__":
    main()
