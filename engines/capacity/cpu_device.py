"""This machine's CPU as a device: from its data sheet's rules of thumb, or measured with our own kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engines.capacity.devices import Device
from engines.cpu import kernels
from engines.cpu.machine_limits import measure_read_bandwidth
from engines.cpu.weights import DenseWeight, Fp4Shard, Fp4Weight
from engines.fp4 import mxfp4
from engines.host_memory import available_memory_bytes

# Rules of thumb: a core streams about 10 GB/s, and two memory channels end near 40.
_BANDWIDTH_PER_CORE = 10e9
_BANDWIDTH_LIMIT = 40e9
_DEFAULT_HERTZ = 2.5e9
# Operations (a multiplication and an addition are two) a cycle and core: int8 dot products for FP4, float32
# for the rest; one vector unit, as virtual machines often share the second. AMX: what is left of 2,048.
_FP4_OPERATIONS = {"amx": 512.0, "avx512-zen": 128.0, "avx512": 128.0, "avx512-vnni": 128.0, "avx2": 32.0}
_FLOAT_OPERATIONS = {"amx": 32.0, "avx512-zen": 32.0, "avx512": 32.0, "avx512-vnni": 32.0, "avx2": 16.0}
_PLAIN_OPERATIONS = 4.0

_READ_BYTES = 512 * 1024 * 1024  # beyond any cache
_GEMM_ROWS, _GEMM_COLUMNS, _GEMM_TOKENS = 2048, 4096, 256
_OPERATIONS = 2 * _GEMM_ROWS * _GEMM_COLUMNS * _GEMM_TOKENS
_READ_REPEATS, _GEMM_REPEATS = 3, 10


@dataclass(frozen=True, slots=True)
class CpuMeasurement:
    """What this machine did in a few seconds; bytes and operations a second, best of a few runs."""

    read_bandwidth: float
    fp4_flops: float
    bf16_flops: float


def cpu_device() -> Device:
    """The CPU on paper: rules of thumb for its cores, clock and instruction set."""
    num_cores = kernels.num_threads()
    isa = kernels.isa_name()
    cycles = num_cores * _clock_hertz()
    return Device(
        name="cpu",
        title=f"this CPU ({num_cores} threads, {isa})",
        sm=None,
        memory_bytes=available_memory_bytes(),
        bandwidth=min(num_cores * _BANDWIDTH_PER_CORE, _BANDWIDTH_LIMIT),
        fp4_flops=cycles * _FP4_OPERATIONS.get(isa, _PLAIN_OPERATIONS),
        bf16_flops=cycles * _FLOAT_OPERATIONS.get(isa, _PLAIN_OPERATIONS),
        unified_memory=True,
    )


def measured_device(device: Device, measurement: CpuMeasurement) -> Device:
    """`device` with what was measured in place of the rules of thumb."""
    return replace(
        device,
        bandwidth=measurement.read_bandwidth,
        fp4_flops=measurement.fp4_flops,
        bf16_flops=measurement.bf16_flops,
    )


def measure_cpu() -> CpuMeasurement:
    """Read a buffer beyond any cache with all threads, and multiply large matrices with the kernels that the
    engine computes FP4 layers and the head with. A few seconds.

    The products run on one thread, timed by its own processor time, and count once for each thread: other
    programs on the machine do not disturb that, and two threads of one core reach less.
    """
    num_threads = kernels.num_threads()
    kernels.set_num_threads(1)
    try:
        fp4 = _OPERATIONS / _best_seconds(_fp4_product())
        bf16 = _OPERATIONS / _best_seconds(_bf16_product())
    finally:
        kernels.set_num_threads(num_threads)
    return CpuMeasurement(
        read_bandwidth=measure_read_bandwidth(num_bytes=_READ_BYTES, repetitions=_READ_REPEATS),
        fp4_flops=fp4 * num_threads,
        bf16_flops=bf16 * num_threads,
    )


def _fp4_product() -> Callable[[], None]:
    random = np.random.default_rng(0)
    packed = random.integers(0, 256, (_GEMM_ROWS, _GEMM_COLUMNS // 2), np.uint8)
    scales = np.full((_GEMM_ROWS, _GEMM_COLUMNS // 32), 127, np.uint8)
    weight = Fp4Weight([Fp4Shard(packed, scales, mxfp4.scale_table())], 32)
    codes = random.integers(-12, 13, (_GEMM_TOKENS, _GEMM_COLUMNS)).astype(np.int8)
    factors = np.ones((_GEMM_TOKENS, _GEMM_COLUMNS // 32), np.float32)
    out = np.empty((_GEMM_TOKENS, _GEMM_ROWS), np.float32)
    return lambda: kernels.fp4_linear_w4a4(codes, factors, weight, out)


def _bf16_product() -> Callable[[], None]:
    random = np.random.default_rng(0)
    numbers = random.standard_normal((_GEMM_ROWS, _GEMM_COLUMNS), np.float32)
    weight = DenseWeight((numbers.view(np.uint32) >> 16).astype(np.uint16))
    x = random.standard_normal((_GEMM_TOKENS, _GEMM_COLUMNS), np.float32)
    out = np.empty((_GEMM_TOKENS, _GEMM_ROWS), np.float32)
    return lambda: kernels.dense_linear(x, weight, out)


def _best_seconds(work: Callable[[], None]) -> float:
    """Processor time of this thread in the shortest of a few runs, after one that warms up."""
    work()
    best = float("inf")
    for _ in range(_GEMM_REPEATS):
        started = time.thread_time()
        work()
        best = min(best, time.thread_time() - started)
    return best


def _clock_hertz() -> float:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = [float(line.split(":")[1]) for line in file if line.startswith("cpu MHz")]
    except (OSError, ValueError, IndexError):
        found = []
    return max(found) * 1e6 if found else _DEFAULT_HERTZ
