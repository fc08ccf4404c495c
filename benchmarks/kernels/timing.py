"""How the kernels are timed: options that all their benchmarks have."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from engines.cpu import kernels


def add_timing_options(parser: argparse.ArgumentParser, *, seconds_are: str) -> None:
    """`--threads`, `--seconds` and `--clock`; `seconds_are` says of what the seconds are."""
    parser.add_argument("--threads", type=int, default=kernels.num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help=seconds_are)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")


def chosen_clock(options: argparse.Namespace) -> Callable[[], float]:
    """Seconds of wall time, or of the process' CPU time by thread."""
    if options.clock == "wall":
        return time.perf_counter
    return lambda: time.process_time() / options.threads
