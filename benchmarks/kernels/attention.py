"""Attention over the paged KV cache by itself: GFLOP/s and GB/s beside limits measured in the same run.

    python -m benchmarks.kernels.attention --threads 2 --output FILE

Prefill of 512 and 4,096 tokens, decode of 1, 8 and 16 sequences at 512 and 4,096 tokens of context, each
with 32 query heads over 8 KV heads of 64 and 128 dimensions. Blocks lie in no order, and decode goes through
caches larger than any cache of the processor, layer after layer as in a model; "decode warm" reads one
layer again and again, 1 MiB from L2 (1 sequence) or 16 to 32 MiB from L3 (16). The arithmetic is FP32:
operations count causal pairs only, a multiply-add as two, against the peak of FP32 FMA; bytes are the keys
and values that must be read, against the read bandwidth. The best call counts; `--clock cpu` as in
benchmarks.kernels.linear.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.kernels.timing import add_timing_options, chosen_clock
from engines.bench.timed_cases import Case, best_seconds
from engines.cpu import kernels
from engines.cpu.machine_limits import MachineLimits, measure_machine_limits

_NUM_HEADS, _NUM_KV_HEADS, _BLOCK_SIZE = 32, 8, 16
_COLD_BYTES = 320 << 20
_STORED = {"bfloat16": np.uint16, "fp8": np.uint8, "float32": np.float32}


@dataclass(frozen=True, slots=True)
class Shape:
    """`num_sequences` sequences of `context` tokens, of which the last `num_rows` are queries."""

    phase: str
    num_sequences: int
    num_rows: int
    context: int
    head_dim: int

    @property
    def name(self) -> str:
        return f"{self.phase} {self.num_sequences}x{self.context} d{self.head_dim}"

    @property
    def num_operations(self) -> int:
        """Over the pairs that causal attention has: a product with each key and each value."""
        pairs = sum(range(self.context - self.num_rows + 1, self.context + 1))
        return 4 * self.num_sequences * pairs * _NUM_HEADS * self.head_dim


def shapes() -> list[Shape]:
    """All that the module's description names."""
    prefill = [Shape("prefill", 1, n, n, d) for n in (512, 4096) for d in (64, 128)]
    decode = [Shape("decode", s, 1, n, d) for s in (1, 8, 16) for n in (512, 4096) for d in (64, 128)]
    warm = [
        Shape("decode warm", s, 1, n, d)
        for s, n, d in ((1, 512, 64), (1, 256, 128), (16, 512, 64), (16, 512, 128))
    ]
    return prefill + decode + warm


def random_cache(
    num_tokens: int, head_dim: int, dtype: str, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys and values of `num_tokens` tokens, written as the engine writes them."""
    row_elements = head_dim + (1 if dtype == "fp8" else 0)
    dims = (num_tokens // _BLOCK_SIZE, _NUM_KV_HEADS, _BLOCK_SIZE, row_elements)
    keys, values = np.zeros(dims, _STORED[dtype]), np.zeros(dims, _STORED[dtype])
    step = 4096
    for start in range(0, num_tokens, step):
        slots = np.arange(start, min(start + step, num_tokens))
        rows = rng.standard_normal((slots.size, _NUM_KV_HEADS, head_dim), np.float32)
        kernels.kv_write(rows, rows, slots, keys, values)
    return keys, values


def attention_case(shape: Shape, dtype: str, rng: np.random.Generator) -> Case:
    """One call for one layer; decode takes the next layer's cache each time."""
    num_tokens = shape.num_sequences * shape.context
    row_bytes = shape.head_dim * {"bfloat16": 2, "fp8": 1, "float32": 4}[dtype] + (dtype == "fp8")
    num_bytes = 2 * num_tokens * _NUM_KV_HEADS * row_bytes
    num_layers = 1 + _COLD_BYTES // num_bytes if shape.phase == "decode" else 1
    keys, values = random_cache(num_layers * num_tokens, shape.head_dim, dtype, rng)
    num_blocks = num_tokens // _BLOCK_SIZE
    tables = rng.permutation(num_blocks).astype(np.int32).reshape(shape.num_sequences, -1)
    q = rng.standard_normal((shape.num_sequences * shape.num_rows, _NUM_HEADS, shape.head_dim), np.float32)
    out = np.empty_like(q)
    starts = (np.arange(shape.num_sequences + 1) * shape.num_rows).astype(np.int32)
    lengths = np.full(shape.num_sequences, shape.context, np.int32)
    turn = iter(range(1 << 62))

    def call() -> None:
        layer = slice((next(turn) % num_layers) * num_blocks, None)
        kernels.paged_attention(
            q, keys[layer], values[layer], tables, starts, lengths, shape.head_dim**-0.5, 0, out
        )

    return Case(shape.name, q.shape[0], num_bytes, shape.num_operations, call)


def row(case: Case, seconds: float, limits: MachineLimits) -> dict[str, Any]:
    """What is printed and recorded of one case."""
    return {
        "case": case.name,
        "seconds": seconds,
        "operations_per_second": case.num_operations / seconds,
        "share_of_fma_peak": case.num_operations / seconds / limits.float32_fma_operations_per_second,
        "bytes_per_second": case.num_bytes / seconds,
        "share_of_read_bandwidth": case.num_bytes / seconds / limits.read_bytes_per_second,
    }


def measure(dtype: str, wanted: str, seconds: float, clock: Callable[[], float]) -> list[tuple[Case, float]]:
    """Cases one after the other: together their caches would not fit."""
    rng = np.random.default_rng(1)
    done = []
    for shape in shapes():
        if wanted in shape.name:
            case = attention_case(shape, dtype, rng)
            done.append((case, best_seconds([case], seconds, clock)[0]))
    return done


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kv-cache-dtype", choices=tuple(_STORED), default="bfloat16")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help='cases with this in their name: "decode 1x"'
    )
    add_timing_options(parser, seconds_are="per case")
    record.add_output_option(parser)
    options = parser.parse_args(arguments)
    kernels.set_num_threads(options.threads)
    begun = record.begin("benchmarks.kernels.attention", arguments)
    limits = measure_machine_limits(options.threads)
    rows = [
        row(case, seconds, limits)
        for case, seconds in measure(
            options.kv_cache_dtype, options.only, options.seconds, chosen_clock(options)
        )
    ]
    print(
        f"{limits.isa}, {limits.num_threads} threads: read {limits.read_bytes_per_second / 1e9:.1f} GB/s, "
        f"FP32 FMA {limits.float32_fma_operations_per_second / 1e9:.0f} GFLOP/s"
    )
    print(f"{'case':24} {'ms':>9} {'GFLOP/s':>8} {'of FMA':>7} {'GB/s':>7} {'of read':>8}")
    for each in rows:
        print(
            f"{each['case']:24} {each['seconds'] * 1e3:9.3f} {each['operations_per_second'] / 1e9:8.1f} "
            f"{each['share_of_fma_peak']:7.0%} {each['bytes_per_second'] / 1e9:7.2f} "
            f"{each['share_of_read_bandwidth']:8.0%}"
        )
    if options.output is not None:
        about = {
            "kv_cache_dtype": options.kv_cache_dtype,
            "clock": options.clock,
            "num_heads": _NUM_HEADS,
            "num_kv_heads": _NUM_KV_HEADS,
            "block_size": _BLOCK_SIZE,
            "machine_limits": asdict(limits),
        }
        record.publish(begun.document({**about, "rows": rows}), options.output)


if __name__ == "__main__":
    main()
