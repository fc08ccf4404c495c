"""Limits of a comparison: met exactly is kept, a hair beyond is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.errors import InvalidRequest
from engines.evaluate.comparison import ComparisonResult
from engines.evaluate.gate import Thresholds
from engines.evaluate.perplexity import perplexity_result

RESULT = ComparisonResult(
    a=perplexity_result(10.0, 10, 12, 1, 1.0),
    b=perplexity_result(10.0, 10, 12, 1, 1.0),
    mean_kl=0.25,
    p99_kl=0.5,
    max_kl=0.5,
    agreement=0.75,
    max_logit_difference=1.0,
    first_divergence=None,
)


def test_a_limit_met_exactly_is_kept() -> None:
    assert Thresholds(0.25, 0.75, 1.0).failures(RESULT) == ()
    assert Thresholds().failures(replace(RESULT, mean_kl=99.0, agreement=0.0)) == ()


@pytest.mark.parametrize(
    ("thresholds", "named"),
    [
        (Thresholds(max_kl=0.2499), "--max-kl"),
        (Thresholds(min_agreement=0.7501), "--min-agreement"),
        (Thresholds(max_perplexity_ratio=0.9999), "--max-perplexity-ratio"),
    ],
)
def test_each_broken_limit_is_named(thresholds: Thresholds, named: str) -> None:
    (failure,) = thresholds.failures(RESULT)
    assert named in failure


def test_several_can_break() -> None:
    assert len(Thresholds(0.0, 1.0, 0.5).failures(RESULT)) == 3


@pytest.mark.parametrize(
    "limits",
    [{"max_kl": -0.1}, {"max_kl": float("nan")}, {"min_agreement": 1.5}, {"max_perplexity_ratio": 0.0}],
)
def test_limits_that_mean_nothing(limits: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Thresholds(**limits)
    assert caught.value.param in limits
