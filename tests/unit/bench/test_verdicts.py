"""What the benchmarks conclude from their figures: HTTP beside the engine, scheduling goals, numerics."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from benchmarks.accuracy.numerics import difference
from benchmarks.cpu_time import cpu_seconds, user_and_system_seconds
from benchmarks.engine.scheduling import judged
from benchmarks.http.overhead import Turn, summary


def test_http_is_compared_by_medians_and_by_the_best_runs() -> None:
    offline = [Turn(100.0, 2.0), Turn(90.0, 2.2), Turn(110.0, 2.1)]
    http = [Turn(80.0, 2.3), Turn(98.0, 2.31), Turn(121.0, 2.5)]
    found = summary(offline, http)
    assert found["tokens_per_second"] == {"offline": 100.0, "http": 98.0}
    assert found["share_of_offline"] == pytest.approx(0.98)
    assert found["share_of_offline_best_runs"] == pytest.approx(1.1)
    assert found["cpu_overhead"] == pytest.approx(0.1)
    assert found["is_as_wanted"]
    assert not summary(offline, [Turn(96.9, 2.0)])["is_as_wanted"]


@pytest.mark.parametrize(
    ("p50", "p99", "share", "idle", "service", "met"),
    [
        (2.9, 3.1, 0.09, 0.001, 0.009, [True, False, True, True]),
        (3.1, 3.2, 0.11, 0.001, 0.02, [False, False, False, False]),
    ],
)
def test_scheduling_goals(
    p50: float, p99: float, share: float, idle: float, service: float, met: list[bool]
) -> None:
    beside = [{"stretch_p50": p50 + shift, "stretch_p99": p99} for shift in (5.0, 0.0, -1.0)]
    prefix = [{"share": share + shift} for shift in (-0.5, 0.5, 0.0)]
    found = judged(beside, prefix, idle, service)
    assert found["beside_a_long_prompt"]["stretch_p50"] == p50
    assert found["shared_prefix"]["share"] == share
    assert list(found["goals_met"].values()) == met


def test_a_difference_of_perplexities_is_per_token_and_paired() -> None:
    num_tokens = np.array([10, 30])
    reference = np.array([20.0, 50.0])
    relative, error = difference(reference + 0.02 * num_tokens, reference, num_tokens)
    assert relative == pytest.approx(math.expm1(0.02))
    assert error == pytest.approx(0.0, abs=1e-12)
    relative, error = difference(reference + np.array([1.0, -1.0]), reference, num_tokens)
    assert relative == 0.0
    assert error == pytest.approx(math.sqrt(2) / 40)


def test_processor_time_is_that_of_the_process() -> None:
    before = cpu_seconds(os.getpid())
    deadline = before + 0.05
    while cpu_seconds(os.getpid()) < deadline:
        sum(range(10_000))
    assert sum(user_and_system_seconds(os.getpid())) >= deadline
