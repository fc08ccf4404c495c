"""Many requests, some given up at any moment: nothing leaks, bounds hold, all who stay are served."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission.controller import Admission, Bounds
from service.admission.demand import Demand, Flow
from service.admission.ticket import Ticket
from service.admission.time_limits import TimeLimits
from service.disconnect import stop_tasks
from service.errors import ServerOverloaded, TooManyRequests
from tests.support import virtual_time

MAX_RUNNING, MAX_QUEUED = 4, 12
FLOWS = {"a": 1.0, "b": 1.0, "c": 4.0}


@dataclass
class House:
    """A fake engine behind a real admission; a token takes a second, and so does tokenizing."""

    admission: Admission = field(
        default_factory=lambda: Admission(Bounds(MAX_RUNNING, MAX_QUEUED), clock=virtual_time.now)
    )
    num_running: int = 0
    most_running: int = 0

    async def request(self, flow: str, num_sequences: int, num_tokens: int, priority: int) -> bool:
        demand = Demand(num_sequences, 5, 10, num_choices=num_sequences, priority=priority)
        try:
            with self.admission.reserve(Flow(flow, FLOWS[flow]), demand, TimeLimits()) as ticket:
                await asyncio.sleep(1)  # the tokenizer
                ticket.settle_prompts([7] * num_sequences)
                sequences = [
                    asyncio.create_task(self._sequence(ticket, index, num_tokens))
                    for index in range(num_sequences)
                ]
                try:
                    await asyncio.gather(*sequences)
                finally:
                    await stop_tasks(*sequences)
        except (ServerOverloaded, TooManyRequests):
            return False
        return True

    async def _sequence(self, ticket: Ticket, index: int, num_tokens: int) -> None:
        async with ticket.turn(index):
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
            try:
                for _ in range(num_tokens):
                    await asyncio.sleep(1)
                    ticket.count_generated(index, 1)
            finally:
                self.num_running -= 1


REQUEST = st.tuples(
    st.sampled_from(sorted(FLOWS)),
    st.integers(1, 4),
    st.integers(0, 12),
    st.sampled_from([-1, 0, 1]),
    st.integers(0, 6),  # seconds until the next one comes
    st.none() | st.integers(0, 30),  # seconds until its client hangs up
)


@settings(deadline=None)
@given(st.lists(REQUEST, max_size=40))
def test_nothing_leaks(arrivals: list[tuple[str, int, int, int, int, int | None]]) -> None:
    async def run() -> House:
        house = House()
        house.admission.set_flows(FLOWS)
        tasks = []
        for flow, num_sequences, num_tokens, priority, pause, patience in arrivals:
            task = asyncio.create_task(house.request(flow, num_sequences, num_tokens, priority))
            tasks.append(task)
            if patience is not None:
                asyncio.get_running_loop().call_later(patience, task.cancel)
            await asyncio.sleep(pause)
            assert house.admission.num_in_flight <= MAX_RUNNING + MAX_QUEUED
        await asyncio.gather(*tasks, return_exceptions=True)
        return house

    house = virtual_time.run(run())
    admission = house.admission
    assert house.num_running == 0
    assert house.most_running <= MAX_RUNNING + 1
    assert (admission.num_in_flight, admission.num_dispatched, admission.num_queued) == (0, 0, 0)
    assert admission.num_queued_tokens == 0
    assert not admission._num_held


@pytest.mark.parametrize("seed", range(2))
def test_a_flood_leaves_the_others_their_share(seed: int) -> None:
    """Flow a asks all the time, b and c one request after the other: each gets what it can use."""
    chance = random.Random(seed)
    served = dict.fromkeys(FLOWS, 0)

    async def run() -> None:
        house = House()
        house.admission.set_flows(FLOWS)
        over = asyncio.Event()

        async def ask(flow: str) -> None:
            while not over.is_set():
                was_served = await house.request(flow, 1, chance.randint(4, 8), 0)
                served[flow] += was_served and not over.is_set()
                await asyncio.sleep(1 if was_served else 10)  # whoever is refused comes back a little later

        tasks = [asyncio.create_task(ask(flow)) for flow in ["a"] * 40 + ["b"] * 3 + ["c"] * 3]
        await asyncio.sleep(800)
        over.set()
        await asyncio.gather(*tasks)

    virtual_time.run(run())
    per_client = {"a": served["a"] / 40, "b": served["b"] / 3, "c": served["c"] / 3}
    assert per_client["b"] > 3 * per_client["a"]
    assert per_client["c"] > 3 * per_client["a"]
