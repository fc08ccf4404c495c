"""What an admitted request holds, and its sequences' way through the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from service.admission.demand import Demand, Flow
from service.admission.fair_queue import Entry
from service.admission.time_limits import Expired, Phase, TimeLimits


class Places(Protocol):
    """Where a ticket's places and turns come from; see `service.admission.controller.Admission`."""

    num_queued_tokens: int

    def enqueue(self, flow: Flow, priority: int, cost: int) -> Entry[asyncio.Future[None]]:
        """Get in line; the entry's future is done when the turn has come."""

    def leave(self, entry: Entry[asyncio.Future[None]], actual_cost: int) -> None:
        """Out of line, or out of the engine."""

    def release(self, flow_name: str, num_sequences: int, *, num_tokens: int, did_run: bool) -> None:
        """Give places back."""

    def dispatch(self) -> None:
        """Give turns as long as the engine has room."""

    def retry_after_seconds(self) -> float:
        """How long the queue as it is takes to come in."""


class Ticket:
    """The places of one request. Each sequence takes its `turn` and then gives its place back."""

    def __init__(self, admission: Places, flow: Flow, demand: Demand, limits: TimeLimits) -> None:
        self.limits = limits
        self.priority = demand.priority
        self.phase = Phase.TURN
        self._admission = admission
        self._flow = flow
        self._demand = demand
        self._num_places = demand.num_sequences
        self._num_booked_tokens = demand.num_billed_tokens
        self._num_prompt_tokens = 0
        self._num_generated: dict[int, int] = {}
        # The work of each sequence that has not had its turn.
        even, rest = divmod(demand.num_work_tokens, demand.num_sequences)
        self._waiting = dict.fromkeys(range(demand.num_sequences), even)
        self._waiting[0] += rest
        admission.num_queued_tokens += demand.num_work_tokens
        if flow.account is not None:
            flow.account.begin(self._num_booked_tokens)

    @property
    def has_produced(self) -> bool:
        """Whether any of the sequences has generated something."""
        return self.phase is Phase.END

    def settle_prompts(self, num_prompt_tokens: Sequence[int]) -> None:
        """Correct the estimate, now that the prompts are tokenised; one number a sequence.

        What was admitted stays admitted. Raises only the error of a time limit that has passed.
        """
        answer = self._demand.num_answer_tokens
        self._admission.num_queued_tokens -= sum(self._waiting.values())
        self._waiting = {index: prompt + answer for index, prompt in enumerate(num_prompt_tokens)}
        self._admission.num_queued_tokens += sum(self._waiting.values())
        self._num_prompt_tokens = sum(num_prompt_tokens[:: self._demand.num_choices])
        self._book(self._num_prompt_tokens + answer * self._demand.num_sequences)
        self.limits.check(Phase.TURN)

    @asynccontextmanager
    async def turn(self, index: int) -> AsyncIterator[float]:
        """The engine's room for one sequence, for the length of the block; gives the seconds waited for it.

        Raises the error of a time limit that passes before; Expired instead if another sequence of the
        request has generated something by then.
        """
        admission = self._admission
        cost = self._waiting[index]
        arrived = time.perf_counter()
        entry = admission.enqueue(self._flow, self.priority, cost)
        did_run = False
        try:
            await self._wait_for(entry.item)
            did_run = True
            admission.num_queued_tokens -= self._waiting.pop(index)
            self.phase = max(self.phase, Phase.FIRST_TOKEN)
            yield time.perf_counter() - arrived
        finally:
            expected, actual = self._demand.num_answer_tokens, self._num_generated.get(index, 0)
            admission.leave(entry, cost - expected + actual)
            if did_run:
                self._num_places -= 1
                admission.release(self._flow.name, 1, num_tokens=cost, did_run=True)

    def count_generated(self, index: int, num_tokens: int) -> None:
        """Note tokens of a sequence as they come."""
        if not num_tokens:
            return
        self.phase = Phase.END
        if index not in self._num_generated:
            self._num_generated[index] = 0
            self._admission.dispatch()  # it has left the engine's own queue
        self._num_generated[index] += num_tokens

    def close(self) -> None:
        """Give back what is still held, and book what was really used."""
        self._admission.num_queued_tokens -= sum(self._waiting.values())
        self._waiting = {}
        if self._num_places:
            self._admission.release(self._flow.name, self._num_places, num_tokens=0, did_run=False)
            self._num_places = 0
        if self.phase is Phase.TURN:
            self._num_prompt_tokens = 0  # nothing was computed
        num_generated_tokens = sum(self._num_generated.values())
        self._book(self._num_prompt_tokens + num_generated_tokens)
        if self._flow.account is not None:
            self._flow.account.count_tokens(
                num_prompt_tokens=self._num_prompt_tokens, num_generated_tokens=num_generated_tokens
            )
            self._flow.account.end()

    def _book(self, num_tokens: int) -> None:
        if self._flow.account is not None:
            self._flow.account.adjust_tokens(num_tokens - self._num_booked_tokens)
        self._num_booked_tokens = num_tokens

    async def _wait_for(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def watch() -> None:
            nonlocal timer
            # Looked at anew each time: another sequence of the request may have come further by now.
            limit = self.limits.next_limit(self.phase)
            if limit is None or turn.done():
                return
            if limit[0] > 0:
                timer = loop.call_later(limit[0], watch)
            else:
                limit[1].retry_after_seconds = self._admission.retry_after_seconds()
                turn.set_exception(Expired() if self.has_produced else limit[1])

        watch()
        try:
            await turn
        finally:
            if timer is not None:
                timer.cancel()
