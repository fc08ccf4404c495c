"""A function that takes too long is interrupted in its own thread, and nothing else ever is."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from service.interruption import Interrupter, TookTooLong


def for_ever() -> None:
    while True:
        try:
            sum(range(10))
        except Exception:  # what a template's code could catch
            continue


def count_to(number: int) -> int:
    count = 0
    while count < number:
        count += 1
    return count


def test_what_a_function_returns_and_raises() -> None:
    interrupter = Interrupter(10.0)
    assert interrupter.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interrupter.run(lambda: 1 // 0)


def test_it_runs_in_the_thread_that_calls() -> None:
    assert Interrupter(10.0).run(threading.get_ident) == threading.get_ident()


def test_a_loop_without_end_is_interrupted_and_the_thread_goes_on() -> None:
    interrupter = Interrupter(0.05)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with pytest.raises(TookTooLong, match=r"0\.05 seconds"):
                pool.submit(interrupter.run, for_ever).result(timeout=30)
            assert pool.submit(interrupter.run, lambda: 7).result(timeout=30) == 7


def test_each_call_has_a_deadline_of_its_own() -> None:
    interrupter = Interrupter(0.05)
    with ThreadPoolExecutor(4) as pool:
        endless = [pool.submit(interrupter.run, for_ever) for _ in range(4)]
        for future in endless:
            with pytest.raises(TookTooLong):
                future.result(timeout=30)


@pytest.fixture
def threads_take_turns_quickly() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_take_turns_quickly")
def test_one_that_ends_at_its_deadline_leaves_nothing_behind() -> None:
    """Whichever of the two comes first: after `run` no interruption is on its way any more."""
    interrupter = Interrupter(0.001)
    for number in range(400):
        with contextlib.suppress(TookTooLong):
            interrupter.run(partial(count_to, 100 * number))
        assert count_to(100) == 100


def test_the_watch_ends_when_there_is_nothing_to_watch() -> None:
    others = set(threading.enumerate())
    interrupter = Interrupter(0.02)
    interrupter.run(lambda: 7)
    for thread in set(threading.enumerate()) - others:
        thread.join(30)
        assert not thread.is_alive()
    assert interrupter.run(lambda: 8) == 8
    with pytest.raises(TookTooLong):
        interrupter.run(for_ever)
