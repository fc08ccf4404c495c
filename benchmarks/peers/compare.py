"""Nybble and its peers on one random-weight model, in one run, taking turns.

    python -m benchmarks.peers.compare 1b --format mxfp4 --format nvfp4 --models DIR --output FILE

The checkpoints and what the peers need of them are made below `--models` when they are not there, and kept.
Medians over the rounds, ratios to each peer and to the best one, and the machine's limits before and after.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import record
from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.bench.limits import best_limits
from engines.bench.peers.catalogue import FAMILIES, Choice, checked_families, parsed_pythons
from engines.bench.peers.compare import compare_with_peers
from engines.bench.peers.report import comparison_json, show_comparison
from engines.bench.phase import Workload
from engines.cpu.machine_limits import MachineLimits, measure_machine_limits
from engines.errors import EngineError


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    begun = record.begin("benchmarks.peers.compare", arguments)
    console = Console(stderr=True, highlight=False)
    workload = Workload(
        num_prefill_tokens=options.prefill_tokens,
        num_decode_tokens=options.decode_tokens,
        concurrencies=tuple(sorted(set(options.concurrency or (1, 8, 16)))),
        num_repeats=options.rounds,
    )
    try:
        choice = Choice(
            options.models,
            checked_families(options.peer),
            parsed_pythons(options.peer_python),
            tuple(options.system),
        )
        directories = [checkpoint(options.models, options.shape, format) for format in formats(options)]
        limits = [limits_now(options.threads)]
        results = compare_with_peers(
            directories,
            choice,
            workload,
            num_threads=options.threads,
            on_progress=lambda text: print(text, file=sys.stderr),
            time_limit_seconds=60 * options.minutes,
        )
        limits.append(limits_now(options.threads))
    except EngineError as error:
        sys.exit(f"error: {error}")
    show_comparison(results, console)
    figures: dict[str, Any] = {
        "model": {"shape": options.shape, "formats": formats(options)},
        "workload": asdict(workload),
        "machine_limits": {"before": asdict(limits[0]), "after": asdict(limits[1])},
        **comparison_json(results, best_limits(*limits), workload),
    }
    if options.note:
        figures["note"] = options.note
    record.publish(begun.document(figures), options.output)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--format", action="append", choices=("mxfp4", "nvfp4"), help="default: mxfp4")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="of all models, kept")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument(
        "--system", action="append", default=[], metavar="NAME", help='only these, as "OpenVINO INT4"'
    )
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="for as many rounds as fit")
    parser.add_argument("--threads", type=int, default=0, help="0 means all physical cores")
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--concurrency", action="append", type=int, help="default: 1, 8 and 16")
    parser.add_argument("--note", help="kept in the record")
    record.add_output_option(parser)
    return parser.parse_args(arguments)


def formats(options: argparse.Namespace) -> list[str]:
    """The FP4 formats that were asked for, each once."""
    return list(dict.fromkeys(options.format or ["mxfp4"]))


def checkpoint(folder: Path, shape: str, format: str) -> Path:
    """The random checkpoint, made if it is not there."""
    directory = folder / f"{shape}-{format}"
    if not directory.exists():
        make_random_checkpoint(directory, SHAPES[shape], format, "compressed-tensors")
    return directory


def limits_now(num_threads: int) -> MachineLimits:
    """With the number of threads that is compared."""
    return measure_machine_limits(num_threads or None)


if __name__ == "__main__":
    main()
