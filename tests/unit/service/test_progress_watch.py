"""Readiness follows steps, not words and not the wall clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.base import EngineStats
from service.errors import NotReady
from service.lifecycle import Lifecycle, Phase
from service.progress_watch import ProgressWatch


class Engine:
    """Figures and a clock in the test's hand; the watch looks every half second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stats = EngineStats()
        self.lifecycle = Lifecycle()
        self.lifecycle.mark_ready()
        self.watch = ProgressWatch(
            self.lifecycle, lambda: self.stats, stall_seconds=10, give_up_seconds=30, clock=lambda: self.now
        )

    def let_pass(self, seconds: float, **changes: int) -> None:
        """Time goes by without a change; then the figures change."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.watch.check()
        self.stats = replace(self.stats, **changes)
        self.watch.check()


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_idle_is_no_standstill(engine: Engine) -> None:
    engine.let_pass(1000)
    assert engine.lifecycle.stall is None
    engine.let_pass(0, num_running=1)
    engine.let_pass(9.5)
    assert engine.lifecycle.stall is None


def test_without_a_step_readiness_goes_and_comes_back_with_one(engine: Engine) -> None:
    engine.let_pass(0, num_running=2, num_waiting=1)
    engine.let_pass(10.5)
    with pytest.raises(NotReady, match=r"no progress for 10\.5 s with 3 sequences"):
        engine.lifecycle.ensure_ready()
    engine.let_pass(0, num_steps_total=1)
    engine.lifecycle.ensure_ready()


def test_a_step_of_a_prefill_is_progress(engine: Engine) -> None:
    engine.let_pass(0, num_running=1)
    for step in range(20):
        engine.let_pass(9, num_steps_total=step + 1)
        assert engine.lifecycle.stall is None
    assert engine.stats.num_generated_tokens_total == 0


def test_a_compiled_grammar_is_progress(engine: Engine) -> None:
    engine.let_pass(0, num_waiting=1)
    for compiled in range(20):
        engine.let_pass(9, num_grammar_compiles_total=compiled + 1)
        assert engine.lifecycle.stall is None


def test_requests_that_come_and_go_are_no_progress(engine: Engine) -> None:
    for num_waiting in range(8):
        engine.let_pass(2, num_running=1, num_waiting=num_waiting)
    assert engine.lifecycle.stall is not None


def test_who_leaves_an_empty_engine_takes_the_standstill_along(engine: Engine) -> None:
    engine.let_pass(0, num_running=1)
    engine.let_pass(11, num_running=0)
    assert engine.lifecycle.stall is None


def test_after_the_second_limit_the_engine_is_lost(engine: Engine) -> None:
    engine.let_pass(0, num_running=1)
    engine.let_pass(30)
    assert engine.lifecycle.phase is Phase.READY
    engine.let_pass(0.5)
    assert engine.lifecycle.phase is Phase.FAILED
    assert "no progress" in (engine.lifecycle.failure or "")


def test_a_machine_slow_at_its_steps_is_given_three_of_them(engine: Engine) -> None:
    engine.let_pass(0, num_running=1)
    engine.let_pass(15, num_steps_total=1)
    engine.let_pass(45)
    assert engine.lifecycle.stall is None
    engine.let_pass(1)
    assert engine.lifecycle.stall is not None
    assert engine.lifecycle.phase is Phase.FAILED


def test_a_drain_keeps_its_phase(engine: Engine) -> None:
    engine.let_pass(0, num_running=1)
    engine.lifecycle.begin_drain()
    engine.let_pass(40)
    assert engine.lifecycle.phase is Phase.DRAINING
