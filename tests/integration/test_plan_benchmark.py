"""The benchmark that holds the plan's CPU row against the CPU engine, on a model of no size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.capacity import plan_cpu
from engines.capacity.cpu_device import CpuMeasurement

LIMITS = [CpuMeasurement(2e9, 3e9, 1e9), CpuMeasurement(1e9, 4e9, 1e9)]


def test_every_phase_stands_beside_its_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter(LIMITS)
    monkeypatch.setattr(plan_cpu, "measure_cpu", lambda: next(measured))
    monkeypatch.setattr(plan_cpu, "PREFILL_TOKENS", 24)
    monkeypatch.setattr(plan_cpu, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(plan_cpu, "DECODE_TOKENS", 4)
    output = tmp_path / "plan.json"
    monkeypatch.setattr("sys.argv", ["plan_cpu", "--shape", "tiny", "--runs", "1", "--output", str(output)])
    plan_cpu.main()
    record = json.loads(output.read_text())
    assert record["measured_limits"] == {"read_bandwidth": 2e9, "fp4_flops": 4e9, "bf16_flops": 1e9}
    assert [row["phase"] for row in record["phases"]] == ["prefill", "decode 1", "decode 8"]
    for row in record["phases"]:
        assert row["bound"] in ("bandwidth", "arithmetic")
        assert row["ceiling_tokens_per_second"] > 0
        assert row["share"] == pytest.approx(
            row["tokens_per_second"] / row["ceiling_tokens_per_second"], abs=0.01, rel=0.05
        )
