"""Our own figures of a comparison beside the ceilings of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models.random_checkpoint import make_random_checkpoint
from benchmarks.models.shapes import SHAPES
from engines.bench.limits import best_limits
from engines.bench.peers.comparison import SystemResult
from engines.bench.peers.shares import own_phases
from engines.bench.peers.system import System
from engines.bench.phase import Workload
from engines.cpu.machine_limits import MachineLimits

BEFORE = MachineLimits("avx512", 2, 10e9, 0.1e12, 1e12, 0.05e12, None, None)
AFTER = MachineLimits("avx512", 2, 8e9, 0.2e12, 2e12, 0.05e12, None, None)


def test_the_better_of_two_measurements() -> None:
    assert best_limits(BEFORE, AFTER) == MachineLimits("avx512", 2, 10e9, 0.2e12, 2e12, 0.05e12, None, None)


def test_each_measurement_beside_its_ceiling(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "tiny", SHAPES["tiny"], "mxfp4", "compressed-tensors")
    runs = {"prefill 40": [10.0, 30.0, 20.0], "decode, 1 stream": [5.0], "decode, 3 streams": [7.0]}
    system = System("nybble", "nybble", "nybble", tmp_path / "tiny", Path("python"))
    workload = Workload(num_prefill_tokens=40, num_decode_tokens=8, concurrencies=(1, 3))
    prefill, alone, together = own_phases(SystemResult(system, runs=runs), BEFORE, workload)
    assert (prefill.name, prefill.tokens_per_second, prefill.runs) == ("prefill 40", 20.0, (10.0, 30.0, 20.0))
    assert (alone.name, alone.tokens_per_second, alone.bound) == ("decode, 1 stream", 5.0, "bandwidth")
    assert (together.num_streams, together.tokens_per_second) == (3, 7.0)
    # Weights of a token: two layers of 45,056 FP4 weights, 17/32 byte each, and the head's 65,536 bytes.
    weights = 2 * (128 * 64 + 64 * 64 + 384 * 64 + 64 * 192) * 17 / 32 + 512 * 64 * 2
    assert alone.limit == pytest.approx(10e9 / weights, rel=0.1)
