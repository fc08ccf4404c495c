"""The arithmetic of a benchmark: rates, percentiles, ceilings."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from engines.bench.limits import measured_device, phases
from engines.bench.offline import OfflineRates
from engines.bench.phase import HttpPhase, Latency, Phase, Workload
from engines.bench.plot import save_plot, show_bars
from engines.bench.steady_rate import steady_rate
from engines.capacity.devices import Device
from engines.capacity.model_cost import LayerCost, ModelCost
from engines.cpu.machine_limits import MachineLimits

MACHINE = MachineLimits("avx512", 2, 10e9, 0.1e12, 1e12, 0.05e12, None, None)
COST = ModelCost(
    always=LayerCost(90_000_000, 180_000_000, 0),
    head=LayerCost(10_000_000, 0, 5_000_000),
    experts=LayerCost(),
    num_experts=0,
    num_experts_per_token=0,
    embedding_bytes=1_000_000,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    max_position_embeddings=4096,
)


def test_the_steady_rate_counts_only_while_all_streams_decode() -> None:
    first = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    second = [2.0, 3.0, 3.0, 4.0]  # a delivery of two tokens
    # Between 2 and 4: two tokens of the first, three of the second.
    assert steady_rate([first, second], sent=-9.0) == pytest.approx(5 / 2)
    assert steady_rate([first], sent=-9.0) == pytest.approx(1.0)


def test_streams_that_never_decode_together_count_from_their_beginning() -> None:
    assert steady_rate([[1.0, 2.0], [2.0, 4.0]], sent=-1.0) == pytest.approx(4 / 5)
    assert steady_rate([[1.0, 1.0, 1.0]], sent=0.5) == pytest.approx(6.0)


def test_nearest_rank_percentiles() -> None:
    latency = Latency.of([float(number) for number in range(100, 0, -1)])
    assert (latency.p50_seconds, latency.p95_seconds, latency.p99_seconds) == (50, 95, 99)
    assert latency.maximum_seconds == 100
    assert Latency.of([7.0]) == Latency(7.0, 7.0, 7.0, 7.0)


def test_ceilings_are_those_of_the_machine_measured() -> None:
    device = measured_device(Device("cpu", "this CPU", None, 1, 1.0, 1.0, 1.0), MACHINE)
    assert (device.bandwidth, device.fp4_flops, device.bf16_flops) == (10e9, 1e12, 0.1e12)
    workload = Workload(512, 16, 64, (1, 8), 3)
    rates = OfflineRates((100.0, 300.0, 200.0), {8: (400.0, 400.0, 500.0), 1: (50.0, 40.0, 60.0)})
    prefill, alone, together = phases(COST, device, workload, rates)
    assert prefill.name == "prefill 512"
    assert prefill.tokens_per_second == 200.0
    assert prefill.bound == "arithmetic"
    # 360 M FP4 operations a token at 1 T/s; attention and head add less than a percent.
    assert prefill.limit == pytest.approx(1e12 / 360e6, rel=0.01)
    assert (alone.name, alone.num_streams, alone.tokens_per_second) == ("decode, 1 stream", 1, 50.0)
    assert alone.bound == "bandwidth"
    assert alone.limit == pytest.approx(10e9 / 100e6, rel=0.01)
    assert alone.share_of_limit == pytest.approx(0.5, rel=0.01)
    assert (together.name, together.tokens_per_second) == ("decode, 8 streams", 400.0)


def http_phase(num_streams: int) -> HttpPhase:
    latency = Latency.of([0.01 * num_streams, 0.02 * num_streams])
    return HttpPhase(num_streams, 4, 90.0, (90.0,), 100.0, latency, latency)


def test_the_share_of_the_engine_that_http_leaves() -> None:
    assert http_phase(2).share_of_offline == pytest.approx(0.9)
    assert Phase("x", 1, 5.0, (5.0,), 10.0, "bandwidth").share_of_limit == 0.5


def test_the_plot_is_a_png_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    save_plot((http_phase(1), http_phase(8)), "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_bars_are_to_scale() -> None:
    console = Console(record=True, width=120)
    show_bars((http_phase(1), http_phase(2)), console)
    latency_bars = [line.split()[-1] for line in console.export_text().splitlines() if "█" in line]
    assert [len(bar) for bar in latency_bars] == [20, 40]
