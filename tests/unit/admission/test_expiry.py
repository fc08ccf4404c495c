"""The end of waiting for an engine's output: by the time limit, by the consumer, by both at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from service.admission.controller import Admission, Bounds
from service.admission.demand import Demand, Flow
from service.admission.expiry import until_expired
from service.admission.ticket import Ticket
from service.admission.time_limits import Expired, TimeLimits, Timeouts
from service.errors import DeadlineExceeded, ServerTimeout
from tests.support.virtual_time import in_virtual_time, now


class Source:
    """An engine's stream: so many outputs at once, and then nothing."""

    def __init__(self, num_outputs: int) -> None:
        self._num_outputs = num_outputs
        self.was_ended = False

    async def outputs(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self._num_outputs):
                yield number
            await asyncio.Event().wait()
        finally:
            self.was_ended = True


def ticket_with(timeouts: Timeouts | None = None, *, client_seconds: float) -> Ticket:
    limits = TimeLimits(timeouts, client_seconds=client_seconds, clock=now)
    return Ticket(Admission(Bounds(1, 1)), Flow(), Demand(1, 1, 1), limits)


async def consume(ticket: Ticket, source: Source) -> list[int]:
    received = []
    async with aclosing(until_expired(ticket, source.outputs())) as outputs:
        async for output in outputs:
            ticket.count_generated(0, 1)
            received.append(output)
    return received


@pytest.mark.parametrize(("num_outputs", "kind"), [(0, DeadlineExceeded), (3, Expired)])
@in_virtual_time
async def test_the_end_of_time(num_outputs: int, kind: type[Exception]) -> None:
    source, started = Source(num_outputs), now()
    with pytest.raises(kind):
        await consume(ticket_with(client_seconds=5), source)
    assert now() - started == 5
    assert source.was_ended


@pytest.mark.parametrize(("num_outputs", "kind", "seconds"), [(0, ServerTimeout, 5), (1, Expired, 30)])
@in_virtual_time
async def test_the_limit_of_the_first_token_ends_with_it(
    num_outputs: int, kind: type[Exception], seconds: float
) -> None:
    started = now()
    with pytest.raises(kind):
        await consume(ticket_with(Timeouts(first_token_seconds=5), client_seconds=30), Source(num_outputs))
    assert now() - started == seconds


@in_virtual_time
async def test_a_slow_consumer_is_told_when_it_asks_again() -> None:
    source = Source(5)
    async with aclosing(until_expired(ticket_with(client_seconds=5), source.outputs())) as outputs:
        assert await outputs.__anext__() == 0
        await asyncio.sleep(10)
        with pytest.raises(DeadlineExceeded):
            await outputs.__anext__()


@in_virtual_time
async def test_a_consumer_that_goes_away_stays_cancelled() -> None:
    source = Source(1)
    task = asyncio.create_task(consume(ticket_with(client_seconds=60), source))
    asyncio.get_running_loop().call_later(5, task.cancel)
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert source.was_ended


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations")
@in_virtual_time
async def test_a_consumer_that_goes_away_at_the_last_moment_stays_cancelled() -> None:
    task = asyncio.create_task(consume(ticket_with(client_seconds=5), Source(0)))
    asyncio.get_running_loop().call_later(5, task.cancel)  # due in the same turn of the loop
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
