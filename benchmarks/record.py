"""Records of the benchmarks in this folder: made alike (engines/bench/record.py), printed and kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.bench.record import BenchmarkRecord, document_text, write_document


def begin(module: str, arguments: Sequence[str] | None = None) -> BenchmarkRecord:
    """The record of `python -m MODULE ARGUMENTS`, None being this process' own; call it before measuring."""
    return BenchmarkRecord(f"python -m {module}", sys.argv[1:] if arguments is None else arguments)


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """`--output FILE`, as every benchmark has it."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON")


def publish(document: Mapping[str, Any], output: Path | None) -> None:
    """Print a record, and write it where it is wanted."""
    print(document_text(document))
    if output is not None:
        write_document(document, output)
