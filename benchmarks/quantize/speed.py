"""Round-to-nearest beside llm-compressor's, alternating, on the same random model.

    python -m benchmarks.quantize.speed --peer-python ENV/bin/python --runs 3 --output FILE.json

Without --peer-python only our own side is measured.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import record
from benchmarks.quantize.random_model import make_random_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.2b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", type=Path)
    record.add_output_option(parser)
    arguments = parser.parse_args()
    begun = record.begin("benchmarks.quantize.speed")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        num_parameters = make_random_model(source, arguments.shape)
        ours, theirs = [], []
        for _ in range(arguments.runs):
            ours.append(_ours(source, Path(folder) / "out", arguments.threads))
            if arguments.peer_python is not None:
                theirs.append(_theirs(source, Path(folder) / "peer", arguments))
    figures: dict[str, Any] = {
        "num_threads": arguments.threads,
        "format": "mxfp4",
        "num_parameters": num_parameters,
        "nybble": _summary(ours, num_parameters, arguments.threads),
    }
    if theirs:
        figures["llm_compressor"] = _summary(theirs, num_parameters, arguments.threads)
        figures["ratio"] = median(theirs) / median(ours)
    record.publish(begun.document(figures), arguments.output)


def _ours(source: Path, destination: Path, threads: int) -> float:
    """The whole command: process start, reading, quantising, writing, syncing."""
    started = time.perf_counter()
    nybble = Path(sys.executable).with_name("nybble")
    subprocess.run(
        [
            nybble,
            "quantize",
            source,
            destination,
            "--format",
            "mxfp4",
            "--threads",
            str(threads),
            "--json",
        ],
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(destination)
    return seconds


def _theirs(source: Path, destination: Path, arguments: argparse.Namespace) -> float:
    """Quantising and saving only: the peer's imports and model load are left out, in its favour."""
    script = Path(__file__).with_name("llm_compressor_rtn.py")
    run = subprocess.run(
        [arguments.peer_python, script, source, "MXFP4", str(arguments.threads), destination],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(destination)
    found = re.search(r"seconds ([\d.]+) saving ([\d.]+)", run.stdout)
    assert found is not None, run.stdout
    return float(found.group(1)) + float(found.group(2))


def _summary(seconds: list[float], num_parameters: int, threads: int) -> dict[str, Any]:
    return {
        "seconds": [round(one, 3) for one in seconds],
        "parameters_per_second_per_core": round(num_parameters / median(seconds) / threads),
    }


if __name__ == "__main__":
    main()
