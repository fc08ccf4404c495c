"""Slots: bounded, taken at once, given back exactly once; and the guess in Retry-After."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from service.admission.controller import Admission
from service.errors import BadRequest, TooManyRequests


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_slots_are_counted_and_returned_on_every_way_out() -> None:
    admission = Admission(max_running=2, max_queued=1)
    with admission.reserve(2):
        assert admission.num_in_flight == 2
        with pytest.raises(ZeroDivisionError), admission.reserve(1):
            raise ZeroDivisionError
        assert admission.num_in_flight == 2
    assert admission.num_in_flight == 0


def test_one_too_many_is_refused_and_takes_nothing() -> None:
    admission = Admission(max_running=2, max_queued=1)
    with admission.reserve(2), pytest.raises(TooManyRequests), admission.reserve(2):
        pytest.fail("there is no room")
    assert admission.num_in_flight == 0
    with admission.reserve(3):
        assert admission.num_in_flight == 3


def test_what_can_never_fit_is_the_clients_mistake() -> None:
    admission = Admission(max_running=2, max_queued=1)
    with pytest.raises(BadRequest) as caught, admission.reserve(4, param="prompt"):
        pytest.fail("there is no room")
    assert caught.value.param == "prompt"


def test_retry_after_follows_the_rate_of_completions() -> None:
    clock = Clock()
    admission = Admission(max_running=4, max_queued=0, clock=clock)
    assert admission.retry_after_seconds(1) == 1.0
    for _ in range(5):  # one every 4 s
        with admission.reserve(1):
            clock.now += 4
    with ExitStack() as held:
        held.enter_context(admission.reserve(4))
        assert admission.retry_after_seconds(1) == pytest.approx(16 / 5)
        assert admission.retry_after_seconds(2) == pytest.approx(32 / 5)
        clock.now += 40
        assert admission.retry_after_seconds(4) == pytest.approx(4 * 56 / 5)
        assert admission.retry_after_seconds(100) == 60.0
        clock.now += 1000
        assert admission.retry_after_seconds(4) == 1.0
