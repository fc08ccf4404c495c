"""Machine limits: every figure is there, None stands for a missing instruction, bad counts are refused."""

from __future__ import annotations

import dataclasses

import pytest

from engines.cpu import kernels
from engines.cpu.machine_limits import measure_machine_limits, measure_read_bandwidth


def test_all_limits_are_measured(isa: str) -> None:
    limits = measure_machine_limits(1, read_bytes=1 << 22, seconds=0.002, repetitions=2)
    assert (limits.isa, limits.num_threads) == (isa, 1)
    assert limits.read_bytes_per_second > 1e6
    assert limits.float32_fma_operations_per_second > 1e6
    assert (limits.int8_dot_operations_per_second is None) == (isa == "plain")
    rates = [value for value in dataclasses.astuple(limits)[3:] if value is not None]
    assert limits.best_operations_per_second == max(rates)


def test_default_is_the_kernels_number_of_threads(restore_threads: None) -> None:
    kernels.set_num_threads(3)
    assert measure_machine_limits(read_bytes=1 << 20, seconds=0.001, repetitions=1).num_threads == 3


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads must be between 1 and 1024, got 0"):
        measure_machine_limits(0)
    with pytest.raises(ValueError, match="repetitions must be at least 1"):
        measure_read_bandwidth(1, num_bytes=1 << 20, repetitions=0)
    with pytest.raises(ValueError, match="at least 4096 bytes"):
        measure_read_bandwidth(1, num_bytes=100)
