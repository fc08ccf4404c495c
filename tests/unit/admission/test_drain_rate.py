"""How fast work leaves: what Retry-After is made of."""

from __future__ import annotations

import pytest

from service.admission.drain_rate import DrainRate
from tests.support.clock import Clock


def test_nothing_is_known_before_two_have_finished() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    assert rate.wait_seconds(num_sequences=3) == 1.0
    rate.set_busy(True)
    clock.now += 7
    rate.finish(10)
    assert rate.sequences_per_second() is None
    assert rate.wait_seconds(num_sequences=3) == 7.0  # as long again as it has taken so far
    clock.now += 500
    assert rate.wait_seconds() == 60.0


def test_the_wait_follows_the_slower_of_the_two_rates() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    rate.set_busy(True)
    for _ in range(5):  # one every 4 s, 100 tokens each
        clock.now += 4
        rate.finish(100)
    assert rate.sequences_per_second() == pytest.approx(1 / 4)
    assert rate.wait_seconds(num_sequences=3) == pytest.approx(12)
    assert rate.wait_seconds(num_tokens=200) == pytest.approx(8)
    assert rate.wait_seconds(num_sequences=3, num_tokens=400) == pytest.approx(16)
    assert rate.wait_seconds(num_sequences=0.1) == 1.0
    assert rate.wait_seconds(num_sequences=1000) == 60.0


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    for _ in range(3):
        rate.set_busy(True)
        clock.now += 2
        rate.finish(1)
        rate.set_busy(False)
        clock.now += 1000
    assert rate.sequences_per_second() == pytest.approx(1 / 2)


def test_what_is_older_than_a_minute_of_work_does_not_count() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    rate.set_busy(True)
    for _ in range(100):
        rate.finish(1)
    clock.now += 61
    assert rate.sequences_per_second() is None
