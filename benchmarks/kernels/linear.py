"""FP4 linear layers of true sizes: GB/s and GFLOP/s, as shares of limits measured in the same run.

    python -m benchmarks.kernels.linear --threads 2 --output FILE

Weights rotate through copies larger than any cache, as in a model. Every case is timed call by call, the
cases taking turns, and the best call counts: on a shared machine a neighbour can only slow a call down.
The last column is the share of the AMX bfloat16 peak where there is one, else of int8 dot products, else of
FP32 FMA; a record says which in `arithmetic_peak`.
`--clock cpu` divides the process's CPU time by the number of threads instead of taking wall time: on a busy
machine it leaves out the time in which somebody else ran (not what that somebody did to caches and memory).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.kernels.timing import add_timing_options, chosen_clock
from engines.bench.timed_cases import Case, best_seconds
from engines.cpu import kernels
from engines.cpu.machine_limits import MachineLimits, measure_machine_limits
from engines.cpu.weights import Fp4Shard, Fp4Weight
from engines.fp4 import mxfp4, nvfp4

_COLD_BYTES = 320 << 20


def random_weights(
    layout: str, num_outputs: int, num_columns: int, num_copies: int, rng: np.random.Generator
) -> list[Fp4Weight]:
    """Copies of one random weight, scales as those of trained weights: exponents of two or three values."""
    group_size = 32 if layout == "mxfp4" else 16
    packed = rng.integers(0, 256, (num_outputs, num_columns // 2), np.uint8)
    shape = (num_outputs, num_columns // group_size)
    if layout == "mxfp4":
        shard = Fp4Shard(packed, rng.integers(119, 122, shape, np.uint8), mxfp4.scale_table())
    else:
        table = nvfp4.scale_table("compressed-tensors", 937.0)
        shard = Fp4Shard(packed, rng.integers(100, 126, shape, np.uint8), table)
    return [Fp4Weight([shard], group_size) for _ in range(num_copies)]


class Rotation:
    """Copies of a weight, in turns for all cases: what the last call read must not be read again."""

    def __init__(self, copies: list[Fp4Weight]) -> None:
        self.copies = copies
        self._turns = itertools.cycle(copies)

    def next(self) -> Fp4Weight:
        """The copy whose turn it is."""
        return next(self._turns)


def linear_case(
    layout: str,
    activations: str,
    num_rows: int,
    weights: Rotation,
    rng: np.random.Generator,
) -> Case:
    """`activations` is "fp4" (W4A4, of activations quantized before) or "bf16" (W4A16)."""
    first = weights.copies[0]
    x = rng.standard_normal((num_rows, first.num_columns)).astype(np.float32)
    out = aligned_outputs(num_rows, first.num_rows)
    if activations == "bf16":

        def call() -> None:
            kernels.fp4_linear_w4a16(x, weights.next(), out)
    else:
        codes, scales = quantized(layout, x, first.group_size)

        def call() -> None:
            kernels.fp4_linear_w4a4(codes, scales, weights.next(), out)

    operations = 2 * num_rows * first.num_rows * first.num_columns
    return Case(f"{layout} {activations}", num_rows, first.num_bytes, operations, call)


def aligned_outputs(num_rows: int, num_outputs: int) -> NDArray[np.float32]:
    """Where whole cache lines are written, as in a model."""
    memory = np.empty(num_rows * num_outputs + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + num_rows * num_outputs].reshape(num_rows, num_outputs)


def quantized(
    layout: str, x: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = np.empty(x.shape, np.int8)
    scales = np.empty((x.shape[0], x.shape[1] // group_size), np.float32)
    if layout == "mxfp4":
        kernels.quantize_mxfp4(x, codes, scales)
    else:
        kernels.quantize_nvfp4(x, 300.0, False, codes, scales)
    return codes, scales


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every layout with both kinds of activations, by number of rows."""
    rng = np.random.default_rng(1)
    num_copies = options.copies or 1 + _COLD_BYTES * 2 // (options.outputs * options.columns)
    for layout in options.layouts.split(","):
        weights = Rotation(random_weights(layout, options.outputs, options.columns, num_copies, rng))
        for activations in options.activations.split(","):
            for num_rows in map(int, options.rows.split(",")):
                yield linear_case(layout, activations, num_rows, weights, rng)


def arithmetic_peak(limits: MachineLimits) -> tuple[str, float]:
    """The limit that operations are compared with: its name in MachineLimits, and operations per second."""
    names = ("amx_bfloat16", "int8_dot", "float32_fma")
    fields = (f"{name}_operations_per_second" for name in names)
    return next((field, peak) for field in fields if (peak := getattr(limits, field)))


def row(case: Case, seconds: float, limits: MachineLimits) -> dict[str, Any]:
    """What the record says of a case."""
    read, rate = case.num_bytes / seconds, case.num_operations / seconds
    return {
        "case": case.name,
        "num_rows": case.num_rows,
        "milliseconds": round(seconds * 1e3, 4),
        "bytes_per_second": round(read),
        "share_of_read_bandwidth": round(read / limits.read_bytes_per_second, 3),
        "operations_per_second": round(rate),
        "share_of_arithmetic_peak": round(rate / arithmetic_peak(limits)[1], 3),
    }


def show(rows: list[dict[str, Any]], limits: MachineLimits) -> None:
    """The limits and a line for each row."""
    print(
        f"{limits.isa}, {limits.num_threads} threads: read {limits.read_bytes_per_second / 1e9:.1f} GB/s, "
        f"FP32 FMA {limits.float32_fma_operations_per_second / 1e9:.0f} GFLOP/s, "
        f"int8 dot {(limits.int8_dot_operations_per_second or 0) / 1e9:.0f} GOP/s, "
        f"AMX bfloat16 {(limits.amx_bfloat16_operations_per_second or 0) / 1e9:.0f} GFLOP/s"
    )
    print(f"{'case':12} {'rows':>5} {'ms':>9} {'GB/s':>7} {'of read':>8} {'GFLOP/s':>8} {'of peak':>8}")
    for each in rows:
        print(
            f"{each['case']:12} {each['num_rows']:5} {each['milliseconds']:9.3f} "
            f"{each['bytes_per_second'] / 1e9:7.2f} {each['share_of_read_bandwidth']:8.0%} "
            f"{each['operations_per_second'] / 1e9:8.1f} {each['share_of_arithmetic_peak']:8.0%}"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.linear",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default="1,2,4,8,16,24,32,64,512")
    parser.add_argument("--outputs", type=int, default=14336)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--layouts", default="mxfp4,nvfp4")
    parser.add_argument("--activations", default="fp4,bf16")
    parser.add_argument("--copies", type=int, help="of each weight; 1 and a small weight: all in cache")
    add_timing_options(parser, seconds_are="per case")
    record.add_output_option(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    kernels.set_num_threads(options.threads)
    begun = record.begin("benchmarks.kernels.linear", arguments)
    limits = measure_machine_limits(options.threads)
    timed = list(cases(options))
    rows = [
        row(case, seconds, limits)
        for case, seconds in zip(
            timed, best_seconds(timed, options.seconds, chosen_clock(options)), strict=True
        )
    ]
    show(rows, limits)
    if options.output is not None:
        about = {
            "num_outputs": options.outputs,
            "num_columns": options.columns,
            "clock": options.clock,
            "arithmetic_peak": arithmetic_peak(limits)[0],
            "machine_limits": asdict(limits),
        }
        record.publish(begun.document({**about, "rows": rows}), options.output)


if __name__ == "__main__":
    main()
