"""Places and room: bounded, taken at once, given back exactly once; who is refused with what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from engines.base import EngineStats
from service.admission.controller import Admission, Bounds
from service.admission.demand import Demand, Flow
from service.admission.ticket import Ticket
from service.admission.time_limits import TimeLimits, Timeouts
from service.errors import BadRequest, DeadlineExceeded, QueueTimeout, ServerOverloaded, TooManyRequests
from tests.support.clock import Clock
from tests.support.virtual_time import in_virtual_time, now, until_quiet

A, B = Flow("a"), Flow("b")


def demand(num_sequences: int = 1, *, prompt: int = 10, answer: int = 10, priority: int = 0) -> Demand:
    return Demand(num_sequences, prompt, answer, num_choices=num_sequences, priority=priority)


def make(
    max_running: int = 2,
    max_queued: int = 1,
    max_tokens: int | None = None,
    clock: Callable[[], float] | None = None,
) -> Admission:
    return Admission(Bounds(max_running, max_queued, max_tokens), clock=clock or Clock())


async def wait_in_vain(admission: Admission, limits: TimeLimits) -> None:
    with admission.reserve(A, demand(), limits) as ticket:
        async with ticket.turn(0):
            pytest.fail("it is nobody's turn")


def test_places_are_counted_and_returned_on_every_way_out() -> None:
    admission = make()
    with admission.reserve(A, demand(2), TimeLimits()):
        assert admission.num_in_flight == 2
        assert admission.num_queued_tokens == 2 * 20
        with pytest.raises(ZeroDivisionError), admission.reserve(A, demand(), TimeLimits()):
            raise ZeroDivisionError
        assert admission.num_in_flight == 2
    assert admission.num_in_flight == 0
    assert admission.num_queued_tokens == 0


def test_one_too_many_is_refused_and_takes_nothing() -> None:
    admission = make()
    with admission.reserve(A, demand(2), TimeLimits()):
        with pytest.raises(ServerOverloaded) as caught, admission.reserve(A, demand(2), TimeLimits()):
            pytest.fail("there is no room")
        assert caught.value.retry_after_seconds == 1.0
    with admission.reserve(A, demand(3), TimeLimits()):
        assert admission.num_in_flight == 3


def test_what_can_never_fit_is_the_clients_mistake() -> None:
    with pytest.raises(BadRequest) as caught, make().reserve(A, demand(4), TimeLimits()):
        pytest.fail("there is no room")
    assert caught.value.param == "n"


def test_tokens_that_wait_are_bounded_but_the_first_request_always_fits() -> None:
    admission = make(max_queued=100, max_tokens=100)
    with (
        admission.reserve(A, demand(prompt=500), TimeLimits()) as ticket,
        pytest.raises(ServerOverloaded, match="510 tokens"),
        admission.reserve(A, demand(prompt=1, answer=1), TimeLimits()),
    ):
        pytest.fail("there is no room")
    with admission.reserve(A, demand(prompt=500), TimeLimits()) as ticket:
        ticket.settle_prompts([30])
        with admission.reserve(A, demand(prompt=50), TimeLimits()):
            assert admission.num_queued_tokens == 100


def test_retry_after_is_computed_from_the_rate_of_completions() -> None:
    clock = Clock()
    admission = make(max_running=4, max_queued=0, clock=clock)

    async def one_at_a_time() -> None:
        for _ in range(5):
            with admission.reserve(A, demand(), TimeLimits()) as ticket:
                async with ticket.turn(0):
                    clock.now += 4

    asyncio.run(one_at_a_time())
    with admission.reserve(A, demand(4), TimeLimits()):
        for num_sequences in (1, 3):
            with (
                pytest.raises(ServerOverloaded) as caught,
                admission.reserve(A, demand(num_sequences), TimeLimits()),
            ):
                pytest.fail("there is no room")
            assert caught.value.retry_after_seconds == pytest.approx(4 * num_sequences)


def test_the_last_places_are_kept_for_flows_below_their_share() -> None:
    admission = make(max_running=8, max_queued=8)
    admission.set_flows({"a": 1.0, "b": 1.0})
    with ExitStack() as held:
        for _ in range(14):
            held.enter_context(admission.reserve(A, demand(), TimeLimits()))
        with pytest.raises(TooManyRequests, match="14 places"), admission.reserve(A, demand(), TimeLimits()):
            pytest.fail("these places are not for this flow")
        for _ in range(2):
            held.enter_context(admission.reserve(B, demand(), TimeLimits()))
        with pytest.raises(ServerOverloaded), admission.reserve(B, demand(), TimeLimits()):
            pytest.fail("there is no room")


def test_a_single_flow_may_have_every_place() -> None:
    admission = make(max_running=8, max_queued=8)
    admission.set_flows({"a": 1.0})
    with admission.reserve(A, demand(16), TimeLimits()):
        assert admission.num_in_flight == 16


@in_virtual_time
async def test_turns_are_given_up_to_what_the_engine_runs_and_one_more() -> None:
    admission = make(max_running=2, max_queued=10)
    order: list[int] = []
    gate = asyncio.Event()

    async def work(index: int) -> None:
        with admission.reserve(A, demand(), TimeLimits()) as ticket:
            async with ticket.turn(0):
                order.append(index)
                await gate.wait()

    tasks = [asyncio.create_task(work(index)) for index in range(6)]
    await until_quiet()
    assert order == [0, 1, 2]
    assert (admission.num_in_flight, admission.num_dispatched, admission.num_queued) == (6, 3, 3)
    gate.set()
    await asyncio.gather(*tasks)
    assert order == list(range(6))
    assert (admission.num_in_flight, admission.num_dispatched, admission.num_queued) == (0, 0, 0)
    assert admission.num_queued_tokens == 0


async def test_scarce_blocks_keep_the_queue_on_our_side() -> None:
    stats = EngineStats(num_running=2, num_waiting=1, num_blocks_used=9, num_blocks_total=10)
    admission = make(max_running=8, max_queued=10)
    admission.attach(8, lambda: stats)
    with ExitStack() as held:
        tickets = [held.enter_context(admission.reserve(A, demand(), TimeLimits())) for _ in range(8)]
        entries = [admission.enqueue(A, 0, 20) for _ in tickets]
        assert [entry.item.done() for entry in entries] == [True, True] + [False] * 6
        stats = EngineStats(num_running=3, num_waiting=0, num_blocks_used=9, num_blocks_total=10)
        admission.dispatch()
        assert all(entry.item.done() for entry in entries)
        for entry in entries:
            admission.leave(entry, 20)
    assert admission.num_dispatched == 0


@in_virtual_time
async def test_a_cancelled_waiter_frees_its_place_at_once() -> None:
    admission = make(max_running=1, max_queued=10)
    for _ in range(2):
        admission.enqueue(A, 0, 1)
    task = asyncio.create_task(wait_in_vain(admission, TimeLimits()))
    await until_quiet()
    assert (admission.num_in_flight, admission.num_queued) == (1, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (admission.num_in_flight, admission.num_queued, admission.num_queued_tokens) == (0, 0, 0)


@in_virtual_time
async def test_a_turn_that_comes_with_the_cancellation_is_passed_on() -> None:
    admission = make(max_running=1, max_queued=10)
    running = [admission.enqueue(A, 0, 1) for _ in range(2)]

    async def wait(ticket: Ticket) -> None:
        async with ticket.turn(0):
            pass

    with (
        admission.reserve(A, demand(), TimeLimits()) as first,
        admission.reserve(A, demand(), TimeLimits()) as second,
    ):
        tasks = [asyncio.create_task(wait(ticket)) for ticket in (first, second)]
        await until_quiet()
        admission.leave(running[0], 1)  # the first waiter's turn has come, but it has not woken up yet
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[0].cancelled()
        assert not tasks[1].cancelled()
    admission.leave(running[1], 1)
    assert (admission.num_dispatched, admission.num_queued, admission.num_in_flight) == (0, 0, 0)


class Account:
    """The books of a key, as short as can be."""

    def __init__(self) -> None:
        self.num_booked = 0
        self.num_running = 0
        self.used: list[tuple[int, int]] = []

    def check(self, num_tokens: int) -> None:
        pass

    def begin(self, num_tokens: int) -> None:
        self.num_running += 1
        self.num_booked += num_tokens

    def count_refusal(self) -> None:
        pass

    def end(self) -> None:
        self.num_running -= 1

    def adjust_tokens(self, num_tokens: int) -> None:
        self.num_booked += num_tokens

    def count_tokens(self, *, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        self.used.append((num_prompt_tokens, num_generated_tokens))


async def test_what_is_booked_is_what_was_used() -> None:
    admission, account = make(max_running=1, max_queued=10), Account()
    flow = Flow("a", 1.0, account)
    with admission.reserve(flow, demand(2, prompt=100, answer=50), TimeLimits()) as ticket:
        assert account.num_booked == 200
        ticket.settle_prompts([30, 30])
        assert account.num_booked == 130
        async with ticket.turn(0):
            ticket.count_generated(0, 7)
    assert account.num_booked == 37
    # One that never had its turn has used nothing.
    with admission.reserve(flow, demand(), TimeLimits()) as ticket:
        ticket.settle_prompts([30])
    assert account.num_booked == 37
    assert account.used == [(30, 7), (0, 0)]
    assert account.num_running == 0


@in_virtual_time
async def test_a_turn_that_does_not_come_in_time() -> None:
    admission, started = make(max_running=1, max_queued=10, clock=now), now()
    for _ in range(2):
        admission.enqueue(A, 0, 1)
    for limits, kind in (
        (TimeLimits(Timeouts(queue_seconds=5), clock=now), QueueTimeout),
        (TimeLimits(client_seconds=10, clock=now), DeadlineExceeded),
    ):
        with pytest.raises(kind):
            await wait_in_vain(admission, limits)
    assert now() - started == 10
    assert (admission.num_in_flight, admission.num_queued) == (0, 0)


def test_a_turn_that_would_come_too_late_is_refused_at_once() -> None:
    clock = Clock()
    admission = make(max_running=1, max_queued=100, clock=clock)
    admission.drain_rate.set_busy(True)
    for _ in range(3):
        clock.now += 2
        admission.drain_rate.finish(20)

    async def fill() -> None:
        for _ in range(12):  # two of them are dispatched, ten wait
            admission.enqueue(A, 0, 20)

    asyncio.run(fill())
    with admission.reserve(A, demand(), TimeLimits(client_seconds=30, clock=clock)):
        pass
    # Another flow's turn comes sooner.
    with admission.reserve(B, demand(), TimeLimits(client_seconds=5, clock=clock)):
        pass
    with (
        pytest.raises(ServerOverloaded, match=r"in about 22\.0 s") as caught,
        admission.reserve(A, demand(), TimeLimits(client_seconds=20, clock=clock)),
    ):
        pytest.fail("its turn would come in 22 s")
    assert caught.value.retry_after_seconds == pytest.approx(2)
