"""Whose turn it is: weighted fair queueing between flows, priority classes, nobody starved.

Within a class it is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024): each flow has a counter of the service it has had, divided by its weight; the flow with the
lowest one is next. A flow that was idle is lifted to the lowest active counter, so that it cannot save
up credit. Pure data structure: no clock, no tasks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

# Of so many turns one goes to the class that has waited longest, whatever its priority.
TURNS_PER_FAVOUR = 8


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[T]):
    """An item in the queue. `cost` is what its flow is charged when it is taken; `number` orders arrivals."""

    item: T
    flow: str
    weight: float
    priority: int
    cost: float
    number: int


@dataclass(slots=True)
class _PriorityClass(Generic[T]):
    flows: dict[str, OrderedDict[int, Entry[T]]] = field(default_factory=dict)
    num_entries: int = 0
    last_turn: int = 0


class FairQueue(Generic[T]):
    """Entries of many flows in priority classes (lower is served first).

    `pop` takes from the lowest class, but every eighth time from the class that was served the longest ago:
    with k classes waiting, none waits for more than 8 k turns. Within a class two flows that always have
    entries get service in proportion to their weights, to within one entry's cost each.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass[T]] = {}
        self._served: dict[str, float] = {}
        self._num_queued: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._level = 0.0
        self._num_pushed = 0
        self._num_turns = 0

    def __len__(self) -> int:
        return sum(self._num_queued.values())

    def push(
        self, item: T, *, flow: str, weight: float = 1.0, priority: int = 0, cost: float = 1.0
    ) -> Entry[T]:
        """Put an item at the end of its flow. `weight` is above 0, `cost` in tokens, at least 0."""
        if flow not in self._num_queued:
            active = [self._served[name] for name in self._num_queued]
            floor = min(active) if active else self._level
            self._served[flow] = max(self._served.get(flow, floor), floor)
        self._num_pushed += 1
        entry = Entry(item, flow, weight, priority, cost, self._num_pushed)
        self._num_queued[flow] = self._num_queued.get(flow, 0) + 1
        self._weights[flow] = weight
        found = self._classes.get(priority)
        if found is None:
            found = self._classes[priority] = _PriorityClass(last_turn=self._num_turns)
        found.flows.setdefault(flow, OrderedDict())[entry.number] = entry
        found.num_entries += 1
        return entry

    def pop(self) -> Entry[T]:
        """Take the entry whose turn it is and charge its flow. Raises IndexError when the queue is empty."""
        if not self._classes:
            raise IndexError("the queue is empty")
        self._num_turns += 1
        if self._num_turns % TURNS_PER_FAVOUR == 0:
            chosen = min(self._classes, key=lambda priority: (self._classes[priority].last_turn, priority))
        else:
            chosen = min(self._classes)
        found = self._classes[chosen]
        found.last_turn = self._num_turns
        flow = min(found.flows, key=lambda name: (self._served[name], next(iter(found.flows[name]))))
        entry = next(iter(found.flows[flow].values()))
        self._level = max(self._level, self._served[flow])
        self._take_out(entry)
        self._served[flow] += entry.cost / entry.weight
        return entry

    def remove(self, entry: Entry[T]) -> bool:
        """Take an entry out before its turn; False if it was not there any more. Nothing is charged."""
        found = self._classes.get(entry.priority)
        if found is None or entry.number not in found.flows.get(entry.flow, ()):
            return False
        self._take_out(entry)
        return True

    def settle(self, entry: Entry[T], actual_cost: float) -> None:
        """Correct the charge of a taken entry once its real cost is known."""
        if entry.flow in self._served:
            self._served[entry.flow] += (actual_cost - entry.cost) / entry.weight

    def forget_idle(self, known_flows: frozenset[str]) -> None:
        """Drop the counters of idle flows that no key has any more."""
        for flow in [name for name in self._served if name not in known_flows | self._num_queued.keys()]:
            del self._served[flow]
            self._weights.pop(flow, None)

    def num_ahead(self, *, flow: str, weight: float, priority: int) -> float:
        """About how many entries are taken before one that is pushed now, if nothing else comes."""
        at_least_as_urgent = [found for number, found in self._classes.items() if number <= priority]
        total = sum(found.num_entries for found in at_least_as_urgent)
        own = sum(len(found.flows.get(flow, ())) for found in at_least_as_urgent)
        others = {name for found in at_least_as_urgent for name in found.flows} - {flow}
        shares = (weight + sum(self._weights[name] for name in others)) / weight
        return min(float(total), own * shares + (shares - 1))

    def _take_out(self, entry: Entry[T]) -> None:
        found = self._classes[entry.priority]
        entries = found.flows[entry.flow]
        del entries[entry.number]
        if not entries:
            del found.flows[entry.flow]
        found.num_entries -= 1
        if not found.num_entries:
            del self._classes[entry.priority]
        self._num_queued[entry.flow] -= 1
        if not self._num_queued[entry.flow]:
            del self._num_queued[entry.flow]
