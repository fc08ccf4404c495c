"""The bfloat16 head, an unquantized product, and its screen: `python -m benchmarks.kernels.head`.

Milliseconds, GB/s and GFLOP/s by number of rows, beside limits measured in the same run; the best call
of each counts. The screen's calls find the likeliest token of random rows, among random weights, whose
largest outputs lie closer together than a trained model's. Weights are larger than the caches: of the screen
there are several. `--clock cpu` as in benchmarks.kernels.linear.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.kernels.timing import add_timing_options, chosen_clock
from engines.bench.timed_cases import Case, best_seconds
from engines.cpu import kernels
from engines.cpu.machine_limits import MachineLimits, measure_machine_limits
from engines.cpu.weights import DenseWeight, HeadScreen

_NUM_SCREENS = 4


def head_cases(vocab_size: int, hidden_size: int, rows: list[int]) -> list[Case]:
    """A product and a search for the likeliest token for each number of rows, all with the same weight."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((vocab_size, hidden_size), np.float32)
    weight = DenseWeight((numbers.view(np.uint32) >> 16).astype(np.uint16))

    def product(num_rows: int) -> Case:
        x = rng.standard_normal((num_rows, hidden_size), np.float32)
        out = np.empty((num_rows, vocab_size), np.float32)
        operations = 2 * num_rows * vocab_size * hidden_size
        return Case(
            "head", num_rows, weight.num_bytes, operations, lambda: kernels.dense_linear(x, weight, out)
        )

    screens = [HeadScreen(weight) for _ in range(_NUM_SCREENS if HeadScreen.fits(hidden_size) else 0)]
    in_turn = cycle(screens)

    def search(num_rows: int) -> Case:
        x = rng.standard_normal((num_rows, hidden_size), np.float32)
        out = np.empty(num_rows, np.int64)
        operations = 2 * num_rows * vocab_size * hidden_size
        return Case(
            "screen", num_rows, screens[0].num_bytes, operations, lambda: next(in_turn).likeliest(x, out)
        )

    return [product(num_rows) for num_rows in rows] + [search(num_rows) for num_rows in rows if screens]


def row(case: Case, seconds: float, limits: MachineLimits) -> dict[str, Any]:
    """What the record says of a case."""
    read, rate = case.num_bytes / seconds, case.num_operations / seconds
    return {
        "case": case.name,
        "num_rows": case.num_rows,
        "milliseconds": round(seconds * 1e3, 3),
        "bytes_per_second": round(read),
        "share_of_read_bandwidth": round(read / limits.read_bytes_per_second, 3),
        "operations_per_second": round(rate),
        "share_of_fma_peak": round(rate / limits.float32_fma_operations_per_second, 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default="1,2,4,8,12,16,24,32,64")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--hidden-size", type=int, default=2048)
    add_timing_options(parser, seconds_are="per number of rows")
    record.add_output_option(parser)
    options = parser.parse_args()
    kernels.set_num_threads(options.threads)
    begun = record.begin("benchmarks.kernels.head")
    limits = measure_machine_limits(options.threads)
    cases = head_cases(options.vocab_size, options.hidden_size, list(map(int, options.rows.split(","))))
    rows = [
        row(case, seconds, limits)
        for case, seconds in zip(
            cases, best_seconds(cases, options.seconds, chosen_clock(options)), strict=True
        )
    ]
    about = {
        "vocab_size": options.vocab_size,
        "hidden_size": options.hidden_size,
        "clock": options.clock,
        "machine_limits": asdict(limits),
    }
    record.publish(begun.document({**about, "rows": rows}), options.output)


if __name__ == "__main__":
    main()
