"""Which limit comes first, and what it ends in."""

from __future__ import annotations

import pytest

from service.admission.time_limits import Phase, TimeLimits, Timeouts, client_seconds
from service.errors import BadRequest, DeadlineExceeded, QueueTimeout, ServerTimeout
from tests.support.clock import Clock

ALL = Timeouts(queue_seconds=1, first_token_seconds=5, total_seconds=30)


@pytest.mark.parametrize(
    ("phase", "seconds", "kind"),
    [
        (Phase.TURN, 1, QueueTimeout),
        (Phase.FIRST_TOKEN, 5, ServerTimeout),
        (Phase.END, 20, DeadlineExceeded),
    ],
)
def test_the_first_limit_of_each_phase(phase: Phase, seconds: float, kind: type[Exception]) -> None:
    limits = TimeLimits(ALL, client_seconds=20, clock=Clock())
    found = limits.next_limit(phase)
    assert found is not None
    assert found[0] == seconds
    assert type(found[1]) is kind


def test_time_passes() -> None:
    clock = Clock()
    limits = TimeLimits(ALL, clock=clock)
    clock.now += 4
    found = limits.next_limit(Phase.FIRST_TOKEN)
    assert found is not None
    assert found[0] == 1
    limits.check(Phase.FIRST_TOKEN)
    clock.now += 1
    with pytest.raises(ServerTimeout, match="first token"):
        limits.check(Phase.FIRST_TOKEN)
    limits.check(Phase.END)
    clock.now += 25
    with pytest.raises(ServerTimeout, match="30 s"):
        limits.check(Phase.END)


def test_without_limits() -> None:
    limits = TimeLimits()
    assert not limits.any
    assert limits.next_limit(Phase.TURN) is None
    assert TimeLimits(client_seconds=1).any
    assert TimeLimits(Timeouts(queue_seconds=1)).any


@pytest.mark.parametrize(
    ("header", "field", "seconds"),
    [(None, None, None), ("2.5", None, 2.5), (None, 3.0, 3.0), ("2", 3.0, 2), ("4", 3.0, 3)],
)
def test_the_shorter_one_counts(header: str | None, field: float | None, seconds: float | None) -> None:
    assert client_seconds(header, field) == seconds


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "inf", "nan", "1s"])
def test_a_malformed_header(header: str) -> None:
    with pytest.raises(BadRequest, match="X-Request-Timeout"):
        client_seconds(header, None)
