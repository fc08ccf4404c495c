"""What this machine can do at most, measured: the rates that bound prefill and decode.

A kernel's share of the peak means something only against a peak of the same minutes: clock and memory
bandwidth move with what else the machine runs. Every figure is the best of a few short runs, because a
neighbour can only lower it.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.cpu import _kernels, kernels

_FLOAT32_FMA, _INT8_DOT, _BFLOAT16_DOT, _AMX_INT8, _AMX_BFLOAT16 = range(5)

_READ_BYTES = 1 << 30
"""Far beyond any last-level cache that two threads would own."""


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Rates of `num_threads` threads together. A multiply-add counts as two operations.

    None where the processor (or the instruction set in use) lacks the instruction: `int8_dot` is VNNI with
    AVX-512 and vpmaddubsw with AVX2, `bfloat16_dot` is vdpbf16ps.
    """

    isa: str
    num_threads: int
    read_bytes_per_second: float
    float32_fma_operations_per_second: float
    int8_dot_operations_per_second: float | None
    bfloat16_dot_operations_per_second: float | None
    amx_int8_operations_per_second: float | None
    amx_bfloat16_operations_per_second: float | None

    @property
    def best_operations_per_second(self) -> float:
        """The highest arithmetic rate measured, whatever the instruction."""
        rates = (
            self.float32_fma_operations_per_second,
            self.int8_dot_operations_per_second,
            self.bfloat16_dot_operations_per_second,
            self.amx_int8_operations_per_second,
            self.amx_bfloat16_operations_per_second,
        )
        return max(rate for rate in rates if rate is not None)


def measure_machine_limits(
    num_threads: int | None = None,
    *,
    read_bytes: int = _READ_BYTES,
    seconds: float = 0.003,
    repetitions: int = 50,
) -> MachineLimits:
    """Measure all limits with `num_threads` threads (default: as many as the kernels use).

    Takes about five times `seconds * repetitions`, plus a few reads of `read_bytes`, which are allocated for
    it. Raises ValueError for counts below 1, MemoryError when the buffer does not fit.
    """
    threads = kernels.num_threads() if num_threads is None else num_threads
    read = measure_read_bandwidth(threads, num_bytes=read_bytes)

    def peak(kind: int) -> float:
        return _kernels.measure_operations(kind, threads, seconds, repetitions)

    return MachineLimits(
        isa=kernels.isa_name(),
        num_threads=threads,
        read_bytes_per_second=read,
        float32_fma_operations_per_second=peak(_FLOAT32_FMA),
        int8_dot_operations_per_second=peak(_INT8_DOT) or None,
        bfloat16_dot_operations_per_second=peak(_BFLOAT16_DOT) or None,
        amx_int8_operations_per_second=peak(_AMX_INT8) or None,
        amx_bfloat16_operations_per_second=peak(_AMX_BFLOAT16) or None,
    )


def measure_read_bandwidth(
    num_threads: int | None = None, *, num_bytes: int = _READ_BYTES, repetitions: int = 10
) -> float:
    """Bytes per second that `num_threads` threads read from memory together, each its own part."""
    threads = kernels.num_threads() if num_threads is None else num_threads
    return _kernels.measure_read_bandwidth(num_bytes, threads, repetitions)
