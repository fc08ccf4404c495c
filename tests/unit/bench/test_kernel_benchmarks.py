"""The records of the kernels: every case beside the right limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kernels import attention, linear
from engines.bench.timed_cases import Case
from engines.cpu.machine_limits import MachineLimits

LIMITS = MachineLimits("avx512", 2, 30e9, 300e9, 1200e9, 150e9, None, None)


def test_every_case_is_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(linear, "measure_machine_limits", lambda _: LIMITS)
    file = tmp_path / "linear.json"
    sizes = ["--outputs", "32", "--columns", "256", "--copies", "2", "--seconds", "0"]
    linear.main(["--rows", "1,24", *sizes, "--output", str(file)])
    document = json.loads(file.read_text())
    assert document["command"].startswith("python -m benchmarks.kernels.linear --rows 1,24 ")
    assert (document["num_outputs"], document["num_columns"], document["clock"]) == (32, 256, "wall")
    assert document["machine_limits"]["int8_dot_operations_per_second"] == 1200e9
    assert document["arithmetic_peak"] == "int8_dot_operations_per_second"
    assert [(each["case"], each["num_rows"]) for each in document["rows"]] == [
        (f"{layout} {activations}", num_rows)
        for layout in ("mxfp4", "nvfp4")
        for activations in ("fp4", "bf16")
        for num_rows in (1, 24)
    ]
    assert "mxfp4 bf16      24" in capsys.readouterr().out


def test_attention_is_recorded_for_the_cases_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "measure_machine_limits", lambda _: LIMITS)
    file = tmp_path / "attention.json"
    attention.main(
        ["--only", "decode warm 1x", "--kv-cache-dtype", "fp8", "--seconds", "0", "--output", str(file)]
    )
    document = json.loads(file.read_text())
    assert document["command"].startswith("python -m benchmarks.kernels.attention --only ")
    assert (document["kv_cache_dtype"], document["block_size"]) == ("fp8", 16)
    assert [row["case"] for row in document["rows"]] == ["decode warm 1x512 d64", "decode warm 1x256 d128"]
    assert "decode warm 1x512 d64" in capsys.readouterr().out


def test_the_rows_of_the_table_are_measured_unless_others_are_named() -> None:
    rows = linear.parse([]).rows.split(",")
    assert {"1", "8", "16", "24", "512"} <= set(rows)


def test_rates_beside_limits() -> None:
    case = Case("mxfp4 fp4", 8, 15_000_000, 600_000_000, lambda: None)
    assert linear.row(case, 0.001, LIMITS) == {
        "case": "mxfp4 fp4",
        "num_rows": 8,
        "milliseconds": 1.0,
        "bytes_per_second": 15_000_000_000,
        "share_of_read_bandwidth": 0.5,
        "operations_per_second": 600_000_000_000,
        "share_of_arithmetic_peak": 0.5,
    }


def test_the_peak_is_that_of_the_best_instruction_there_is() -> None:
    tiles = replace(LIMITS, amx_bfloat16_operations_per_second=4e12)
    assert linear.arithmetic_peak(tiles) == ("amx_bfloat16_operations_per_second", 4e12)
    without = replace(LIMITS, int8_dot_operations_per_second=None)
    assert linear.arithmetic_peak(without) == ("float32_fma_operations_per_second", 300e9)
