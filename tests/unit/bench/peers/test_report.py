"""What is said of a comparison: medians, ratios, and why somebody is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from engines.bench.peers import report
from engines.bench.peers.comparison import SystemResult
from engines.bench.peers.report import comparison_json, show_comparison
from engines.bench.peers.system import System
from engines.bench.peers.worker import Loaded
from engines.bench.phase import Phase, Workload
from engines.cpu.machine_limits import MachineLimits

MACHINE = MachineLimits("avx512", 2, 10e9, 0.1e12, 1e12, None, None, None)
WORKLOAD = Workload(concurrencies=())


@pytest.fixture(autouse=True)
def no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of these systems are no checkpoints."""
    phase = Phase("prefill 512", 1, 200.0, (100.0, 300.0, 200.0), 400.0, "arithmetic")
    monkeypatch.setattr(report, "own_phases", lambda *_: (phase,))


def result(name: str, family: str, *runs: float, skipped: str | None = None) -> SystemResult:
    system = System(name, family, "worker", Path(__file__), Path("python"))
    return SystemResult(system, Loaded(1.5, {"x": "1"}), {"prefill 512": list(runs)}, 7, skipped)


RESULTS = [
    result("nybble MXFP4 W4A4", "nybble", 100.0, 300.0, 200.0),
    result("slow", "llama.cpp", 50.0),
    result("fast", "OpenVINO", 80.0),
    result("absent", "vLLM", 999.0, skipped="not installed: No module named 'vllm'"),
]


def test_medians_and_ratios() -> None:
    found = comparison_json(RESULTS, MACHINE, WORKLOAD)
    assert [each["name"] for each in found["systems"]] == ["nybble MXFP4 W4A4", "slow", "fast"]
    ours = found["systems"][0]
    assert ours["tokens_per_second"] == {"prefill 512": 200.0}
    assert ours["runs"] == {"prefill 512": [100.0, 300.0, 200.0]}
    assert ours["versions"] == {"x": "1"}
    assert ours["model_bytes"] == Path(__file__).stat().st_size
    (share,) = found["shares_of_limit"]
    assert (share["system"], share["limit"], share["share_of_limit"]) == ("nybble MXFP4 W4A4", 400.0, 0.5)
    assert found["ratios"] == [
        {
            "system": "nybble MXFP4 W4A4",
            "phase": "prefill 512",
            "over": {"slow": 4.0, "fast": 2.5},
            "best_peer": "fast",
            "over_best_peer": 2.5,
        }
    ]


def test_reasons() -> None:
    assert comparison_json(RESULTS, MACHINE, WORKLOAD)["skipped"] == [
        {"name": "absent", "reason": "not installed: No module named 'vllm'"}
    ]
    alone = comparison_json([RESULTS[0], RESULTS[3]], MACHINE, WORKLOAD)
    assert alone["ratios"][0]["best_peer"] is None
    assert alone["ratios"][0]["over_best_peer"] is None


def test_tables() -> None:
    console = Console(record=True, width=120)
    show_comparison(RESULTS, console)
    text = console.export_text()
    assert "2.50 (fast)" in text
    assert "absent skipped: not installed: No module named 'vllm'" in text
