"""Rounds of systems in turn, with workers that only remember what they were asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.bench.peers import comparison
from engines.bench.peers.comparison import Comparison, SystemResult, measurements
from engines.bench.peers.system import Limits, Measurement, PeerUnavailable, System
from engines.bench.peers.worker import Loaded
from engines.bench.phase import Workload

LIMITS = Limits(2, (0, 1), 4, 64, 512)
WORKLOAD = Workload(num_prefill_tokens=40, num_decode_tokens=9, concurrencies=(1, 4), num_repeats=2)
PREFILL, ALONE, TOGETHER = "prefill 40", "decode, 1 stream", "decode, 4 streams"


class FakeWorker:
    """Says rates in the order given; an exception among them is raised."""

    def __init__(self, name: str, log: list[str], rates: Iterator[float | PeerUnavailable]) -> None:
        self._name = name
        self._log = log
        self._rates = rates

    def wait_until_loaded(self) -> Loaded:
        return Loaded(0.5, {"fake": "1"})

    def measure(self, run: Measurement) -> float:
        self._log.append(f"{self._name} {run.name} {run.num_tokens}")
        rate = next(self._rates)
        if isinstance(rate, PeerUnavailable):
            raise rate
        return rate

    def warm_up(self, run: Measurement) -> None:
        self._log.append(f"{self._name} warms up {run.name} {run.num_tokens}")

    def hold(self) -> None:
        self._log.append(f"{self._name} held")

    def go_on(self) -> None:
        self._log.append(f"{self._name} goes on")

    def peak_resident_bytes(self) -> int:
        return 123

    def close(self) -> None:
        self._log.append(f"{self._name} closed")


class Stage:
    """Makes workers and keeps the log of all of them."""

    def __init__(self, rates: dict[str, list[float | PeerUnavailable]]) -> None:
        self.log: list[str] = []
        self._rates = {name: iter(values) for name, values in rates.items()}

    def start(self, system: System, limits: Limits) -> FakeWorker:
        assert limits is LIMITS
        self.log.append(f"{system.name} started")
        return FakeWorker(system.name, self.log, self._rates[system.name])

    def run(self) -> dict[str, SystemResult]:
        systems = [System(name, "x", "x", Path(__file__), Path("python")) for name in self._rates]
        results = [SystemResult(system) for system in systems]
        compared = Comparison(results, LIMITS, WORKLOAD, lambda _: None, self.start)
        return {result.system.name: result for result in compared.run()}


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "available_memory_bytes", lambda: 1 << 40)


def test_what_is_measured() -> None:
    assert measurements(WORKLOAD) == (
        Measurement(PREFILL, 1, 40, 0),
        Measurement(ALONE, 1, 16, 9),
        Measurement(TOGETHER, 4, 16, 9),
    )


def test_systems_take_turns_and_each_round_begins_with_another() -> None:
    stage = Stage({name: [10.0, 20.0, 30.0, 12.0, 26.0, 30.0] for name in "ab"})
    results = stage.run()
    turn = [f"{PREFILL} 0", f"{ALONE} 9", f"{TOGETHER} 9"]
    warm_up = [f"warms up {PREFILL} 0", f"warms up {ALONE} 4", f"warms up {TOGETHER} 4"]

    def of(name: str, entries: list[str]) -> list[str]:
        return [f"{name} {entry}" for entry in entries]

    assert stage.log == [
        *of("a", ["started", *warm_up, *turn, "held"]),
        *of("b", ["started", *warm_up, *turn, "held"]),
        *of("b", ["goes on", *turn, "held"]),
        *of("a", ["goes on", *turn, "held"]),
        "a closed",
        "b closed",
    ]
    assert results["a"].runs == {PREFILL: [10.0, 12.0], ALONE: [20.0, 26.0], TOGETHER: [30.0, 30.0]}
    assert results["a"].rates() == {PREFILL: 11.0, ALONE: 23.0, TOGETHER: 30.0}
    assert results["a"].peak_resident_bytes == 123
    assert results["a"].loaded == Loaded(0.5, {"fake": "1"})


def test_one_that_fails_is_left_out_and_the_others_go_on() -> None:
    stage = Stage({"a": [1.0, PeerUnavailable("killed by SIGILL")], "b": [2.0] * 9})
    results = stage.run()
    assert results["a"].skipped == "killed by SIGILL"
    assert results["a"].rates() == {}
    assert stage.log.count("a closed") == 1
    assert stage.log.count("a started") == 1
    assert results["b"].skipped is None
    assert len(results["b"].runs[PREFILL]) == 2


def test_one_without_a_model_is_never_started() -> None:
    stage = Stage({"b": [2.0] * 9})
    absent = SystemResult(System("a", "x", "x", Path(), Path("python")), skipped="no model")
    present = SystemResult(System("b", "x", "x", Path(__file__), Path("python")))
    Comparison([absent, present], LIMITS, WORKLOAD, lambda _: None, stage.start).run()
    assert absent.skipped == "no model"
    assert "a started" not in stage.log
    assert len(present.runs[PREFILL]) == 2


def test_where_memory_is_short_a_worker_ends_with_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "available_memory_bytes", lambda: 5 << 30)
    stage = Stage({"a": [1.0] * 12, "b": [2.0] * 12})
    stage.run()
    assert stage.log.count("a started") == stage.log.count("a closed") == 2
    order = [entry for entry in stage.log if entry.endswith(("started", "closed"))]
    first = ["a started", "a closed", "b started", "b closed"]
    assert order == first + first[2:] + first[:2]


def test_no_round_begins_that_the_time_has_no_room_for() -> None:
    now = iter([0.0, 0.0, 40.0, 90.0])  # rounds of 40 and 50 seconds
    stage = Stage({"a": [1.0] * 9})
    result = SystemResult(System("a", "x", "x", Path(__file__), Path("python")))
    workload = replace(WORKLOAD, num_repeats=5)
    said: list[str] = []
    Comparison(
        [result],
        LIMITS,
        workload,
        said.append,
        stage.start,
        time_limit_seconds=100.0,
        clock=now.__next__,
    ).run()
    assert len(result.runs[PREFILL]) == 2
    assert said[-1] == "no time for round 3 of 5"


def test_a_model_that_cannot_be_loaded_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "available_memory_bytes", lambda: 1 << 30)
    stage = Stage({"a": []})
    reason = stage.run()["a"].skipped
    assert reason is not None
    assert "needs about 2.1 GB while it loads, 1.1 GB are available" in reason
    assert stage.log == []


def test_all_are_closed_when_something_unforeseen_happens() -> None:
    stage = Stage({"a": [1.0] * 9, "b": []})
    with pytest.raises(StopIteration):
        stage.run()
    assert {"a closed", "b closed"} <= set(stage.log)
