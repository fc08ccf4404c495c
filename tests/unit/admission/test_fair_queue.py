"""Whose turn it is: order, shares, classes, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.admission.fair_queue import TURNS_PER_FAVOUR, Entry, FairQueue

FLOWS = ("a", "b", "c")
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}


def test_one_flow_is_served_in_order_of_arrival() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.push(number, flow="a", cost=20 - number)
    assert [queue.pop().item for _ in range(20)] == list(range(20))
    with pytest.raises(IndexError):
        queue.pop()


def test_a_flood_does_not_delay_a_flow_that_comes_later() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("flood", flow="a", cost=10)
    for _ in range(50):
        queue.pop()
    queue.push("late", flow="b", cost=10)
    assert "late" in [queue.pop().item for _ in range(2)]


def test_idling_saves_up_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(200):
        queue.push("busy", flow="a", cost=10)
    for _ in range(100):
        queue.pop()
    for _ in range(20):
        queue.push("rested", flow="b", cost=10)
    taken = Counter(queue.pop().item for _ in range(20))
    assert taken["busy"] in (9, 10, 11)


@given(st.lists(st.tuples(st.sampled_from(FLOWS), st.integers(1, 50)), min_size=60, max_size=300))
def test_flows_that_always_wait_get_service_by_weight(pushes: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    served, left = dict.fromkeys(FLOWS, 0.0), Counter(flow for flow, _ in pushes)
    for flow, cost in pushes:
        queue.push(cost, flow=flow, weight=WEIGHTS[flow], cost=cost)
    while all(left[flow] for flow in FLOWS):
        shares = [served[flow] / WEIGHTS[flow] for flow in FLOWS]
        assert max(shares) - min(shares) <= 50  # the largest cost by the smallest weight
        entry = queue.pop()
        served[entry.flow] += entry.cost
        left[entry.flow] -= 1


def test_settling_makes_up_for_a_wrong_guess() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push("cheap", flow="a", cost=100)
        queue.push("dear", flow="b", cost=100)
    first = [queue.pop(), queue.pop()]
    for entry in first:
        queue.settle(entry, 10 if entry.flow == "a" else 100)
    assert queue.pop().flow == "a"
    assert queue.pop().flow == "b"


def test_a_lower_class_gets_every_eighth_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("urgent", flow="a", priority=-1)
        queue.push("patient", flow="b", priority=1)
    taken = [queue.pop().item for _ in range(3 * TURNS_PER_FAVOUR)]
    assert taken == (["urgent"] * (TURNS_PER_FAVOUR - 1) + ["patient"]) * 3


def test_how_many_are_ahead() -> None:
    queue: FairQueue[int] = FairQueue()
    assert queue.num_ahead(flow="b", weight=1, priority=0) == 0
    for number in range(40):
        queue.push(number, flow="a", priority=0)
    assert queue.num_ahead(flow="a", weight=1, priority=0) == 40
    assert queue.num_ahead(flow="a", weight=1, priority=-1) == 0
    assert queue.num_ahead(flow="b", weight=1, priority=0) == 1
    assert queue.num_ahead(flow="b", weight=4, priority=0) == 0.25


def test_idle_flows_nobody_knows_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    for flow in "abc":
        queue.push(1, flow=flow)
    queue.pop()
    queue.pop()
    queue.forget_idle(frozenset("a"))
    assert queue._served.keys() == {"a", "c"}


class QueueMachine(RuleBasedStateMachine):
    """Pushes, pops, removals in any order, beside a list of what has to be in there."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.entries: list[Entry[int]] = []
        self.waited: dict[int, int] = {}
        self.num_pushed = 0

    @rule(flow=st.sampled_from(FLOWS), priority=st.sampled_from([-5, 0, 5]), cost=st.integers(0, 100))
    def push(self, flow: str, priority: int, cost: int) -> None:
        self.num_pushed += 1
        entry = self.queue.push(
            self.num_pushed, flow=flow, weight=WEIGHTS[flow], priority=priority, cost=cost
        )
        self.entries.append(entry)
        self.waited[priority] = self.waited.get(priority, 0)

    @precondition(lambda self: self.entries)
    @rule()
    def pop(self) -> None:
        entry = self.queue.pop()
        assert entry in self.entries
        earlier = [other for other in self.entries if other.number < entry.number]
        assert not any(other.flow == entry.flow and other.priority == entry.priority for other in earlier)
        self.entries.remove(entry)
        waiting = {other.priority for other in self.entries}
        self.waited = {
            priority: 0 if priority == entry.priority else self.waited.get(priority, 0) + 1
            for priority in waiting
        }
        assert all(turns <= 3 * TURNS_PER_FAVOUR for turns in self.waited.values())

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        assert self.queue.remove(entry)
        assert not self.queue.remove(entry)
        self.entries.remove(entry)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.entries)

    def teardown(self) -> None:
        while self.entries:
            self.pop()
        assert not self.queue._classes
        assert not self.queue._num_queued


TestQueueMachine = QueueMachine.TestCase
