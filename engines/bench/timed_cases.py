"""Timing short calls on a shared machine: cases take turns, and each one's best call counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LEAST_CALLS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One product, ready to be called again and again.

    Each call uses the next copy of its weight, so that the weight comes from memory as it does in a model.
    `num_bytes` are the weight's; a multiply-add counts as two operations.
    """

    name: str
    num_rows: int
    num_bytes: int
    num_operations: int
    call: Callable[[], None]


def best_seconds(
    cases: Sequence[Case], seconds_per_case: float, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The best call of each case by `clock`, at least three each: a neighbour can only slow a call down."""
    best = [float("inf")] * len(cases)
    spent = [0.0] * len(cases)
    num_turns = 0
    waiting = list(range(len(cases)))
    while waiting:
        for i in waiting:
            started = clock()
            cases[i].call()
            elapsed = clock() - started
            best[i] = min(best[i], elapsed)
            spent[i] += elapsed
        num_turns += 1
        waiting = [i for i in waiting if num_turns < _LEAST_CALLS or spent[i] < seconds_per_case]
    return best
