"""Admission: a place and room for the tokens are taken before any work is done; turns are fair."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engines.base import EngineStats
from service.admission.demand import Demand, Flow
from service.admission.drain_rate import DrainRate
from service.admission.fair_queue import Entry, FairQueue
from service.admission.ticket import Ticket
from service.admission.time_limits import Phase, TimeLimits
from service.errors import BadRequest, ServerOverloaded, ServiceError, TooManyRequests

# The last part of the places is for flows that hold less than their share.
_PARTS_KEPT_FOR_SMALL_FLOWS = 8
# What the engine is handed beyond what it can run, so that it need not wait for us between two steps.
_PARTS_LOOKED_AHEAD = 8
# With this share of the KV blocks in use, sequences in the engine's own queue wait for blocks.
_SCARCE_KV_USAGE = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """`max_running` sequences at a time and `max_queued` more; `max_queued_tokens` None is no bound."""

    max_running: int
    max_queued: int
    max_queued_tokens: int | None = None


class Admission:
    """Places in the house (sequences that run or wait) and the queue in front of the engine.

    Used from one event loop: `reserve` checks and takes in one go, without an await in between; what has been
    admitted is not refused later for want of room. The engine is handed what it can run and a little more, so
    that the order is that of the FairQueue.
    """

    def __init__(self, bounds: Bounds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds = bounds
        self._clock = clock
        self._max_running = bounds.max_running
        self._engine_stats: Callable[[], EngineStats] = EngineStats
        self.queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self.drain_rate = DrainRate(clock)
        self.num_in_flight = 0
        self.num_dispatched = 0
        self.num_queued_tokens = 0
        self._num_held: dict[str, int] = {}
        self._total_weight = 0.0

    @property
    def capacity(self) -> int:
        """Sequences that may run or wait."""
        return self._max_running + self._bounds.max_queued

    @property
    def num_queued(self) -> int:
        """Sequences that wait for their turn at the engine."""
        return len(self.queue)

    def attach(self, max_running: int, stats: Callable[[], EngineStats]) -> None:
        """Tell what the engine can run and where to see what it does."""
        self._max_running = max_running
        self._engine_stats = stats

    def set_flows(self, weights: dict[str, float]) -> None:
        """The flows there are, by name; shares of places follow their weights. Empty: the anonymous one."""
        self._total_weight = sum(weights.values()) if len(weights) > 1 else 0.0
        self.queue.forget_idle(frozenset(weights))

    @contextmanager
    def reserve(self, flow: Flow, demand: Demand, limits: TimeLimits) -> Iterator[Ticket]:
        """Hold places and room for the length of the block.

        Raises BadRequest if they could never be had; TooManyRequests if this flow has more than its share;
        ServerOverloaded if there are none, or if the turn would come after a time limit; and what the
        key's own limits raise.
        """
        limits.check(Phase.TURN)
        try:
            self._refuse_impossible(demand)
            if flow.account is not None:
                flow.account.check(demand.num_billed_tokens)
            self._refuse_without_room(flow, demand)
            self._refuse_too_late(flow, demand, limits)
        except ServiceError:
            if flow.account is not None:
                flow.account.count_refusal()
            raise
        ticket = Ticket(self, flow, demand, limits)
        self._take(flow.name, demand.num_sequences)
        try:
            yield ticket
        finally:
            ticket.close()

    def estimated_wait_seconds(self, flow: Flow, priority: int) -> float | None:
        """When the turn of a sequence that came now would be; None when too little is known."""
        if self._can_dispatch() and not len(self.queue):
            return 0.0
        rate = self.drain_rate.sequences_per_second()
        if rate is None:
            return None
        num_ahead = self.queue.num_ahead(flow=flow.name, weight=flow.weight, priority=priority)
        return (num_ahead + 1) / rate

    def retry_after_seconds(self) -> float:
        """How long the queue as it is takes to come in."""
        return self.drain_rate.wait_seconds(num_sequences=self.num_queued)

    def enqueue(self, flow: Flow, priority: int, cost: int) -> Entry[asyncio.Future[None]]:
        """Get in line; the entry's future is done when the turn has come, perhaps at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self.queue.push(future, flow=flow.name, weight=flow.weight, priority=priority, cost=cost)
        self.dispatch()
        return entry

    def leave(self, entry: Entry[asyncio.Future[None]], actual_cost: int) -> None:
        """Out of line, or out of the engine after having used `actual_cost` tokens. The next ones move up."""
        if not self.queue.remove(entry):
            self.queue.settle(entry, actual_cost)
            self.num_dispatched -= 1
        self.dispatch()

    def dispatch(self) -> None:
        """Give turns as long as the engine has room."""
        while len(self.queue) and self._can_dispatch():
            self.num_dispatched += 1
            future = self.queue.pop().item
            if not future.done():
                future.set_result(None)

    def release(self, flow_name: str, num_sequences: int, *, num_tokens: int, did_run: bool) -> None:
        """Places given back; `num_tokens` is what had been reserved for each."""
        self.num_in_flight -= num_sequences
        self._num_held[flow_name] -= num_sequences
        if not self._num_held[flow_name]:
            del self._num_held[flow_name]
        if did_run:
            for _ in range(num_sequences):
                self.drain_rate.finish(num_tokens)
        self.drain_rate.set_busy(self.num_in_flight > 0)

    def _take(self, flow_name: str, num_sequences: int) -> None:
        self.num_in_flight += num_sequences
        self._num_held[flow_name] = self._num_held.get(flow_name, 0) + num_sequences
        self.drain_rate.set_busy(True)

    def _can_dispatch(self) -> bool:
        look_ahead = max(1, self._max_running // _PARTS_LOOKED_AHEAD)
        if self.num_dispatched >= self._max_running + look_ahead:
            return False
        if self.num_dispatched <= look_ahead:
            return True
        stats = self._engine_stats()
        return stats.kv_cache_usage < _SCARCE_KV_USAGE or stats.num_waiting < look_ahead

    def _refuse_impossible(self, demand: Demand) -> None:
        if demand.num_sequences > self.capacity:
            raise BadRequest(
                f"The request asks for {demand.num_sequences} sequences at once; this server holds at most "
                f"{self.capacity}. Split it into smaller requests.",
                param=demand.param,
            )

    def _refuse_without_room(self, flow: Flow, demand: Demand) -> None:
        num_missing = self.num_in_flight + demand.num_sequences - self.capacity
        if num_missing > 0:
            raise ServerOverloaded(
                f"The server is full: {self.num_in_flight} of {self.capacity} sequences run or wait. "
                "Try again after the time in the Retry-After header.",
                retry_after_seconds=self.drain_rate.wait_seconds(num_sequences=num_missing),
            )
        max_tokens = self._bounds.max_queued_tokens
        if max_tokens is not None and self.num_queued_tokens:
            num_missing_tokens = self.num_queued_tokens + demand.num_work_tokens - max_tokens
            if num_missing_tokens > 0:
                raise ServerOverloaded(
                    f"The server is full: work of {self.num_queued_tokens} tokens waits, at most {max_tokens}"
                    f" may, and this request would add {demand.num_work_tokens}. Try again after the time in "
                    "the Retry-After header.",
                    retry_after_seconds=self.drain_rate.wait_seconds(num_tokens=num_missing_tokens),
                )
        self._refuse_beyond_share(flow, demand)

    def _refuse_beyond_share(self, flow: Flow, demand: Demand) -> None:
        num_open = self.capacity - self.capacity // _PARTS_KEPT_FOR_SMALL_FLOWS
        num_beyond = self.num_in_flight + demand.num_sequences - num_open
        if not self._total_weight or num_beyond <= 0:
            return
        share = self.capacity * flow.weight / max(self._total_weight, flow.weight)
        num_held = self._num_held.get(flow.name, 0)
        if num_held + demand.num_sequences > share:
            raise TooManyRequests(
                f"The server is nearly full and this key holds {num_held} places, its share of which is "
                f"{share:.0f}. Try again after the time in the Retry-After header.",
                retry_after_seconds=self.drain_rate.wait_seconds(num_sequences=num_beyond),
            )

    def _refuse_too_late(self, flow: Flow, demand: Demand, limits: TimeLimits) -> None:
        limit = limits.next_limit(Phase.TURN)
        if limit is None:
            return
        wait = self.estimated_wait_seconds(flow, demand.priority)
        if wait is not None and wait > limit[0]:
            raise ServerOverloaded(
                f"The request's turn would come in about {wait:.1f} s, after its time limit of "
                f"{limit[0]:.1f} s. Allow more time, or try again after the time in the Retry-After header.",
                retry_after_seconds=wait - limit[0],
            )
