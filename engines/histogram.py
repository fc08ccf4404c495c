"""Durations and sizes counted in fixed buckets: cheap enough for every token and every step.

Standard library only. One thread records; any thread may take a snapshot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was observed up to a moment.

    `counts` has one entry for each of `upper_bounds`, which ascend and are inclusive, and one more for what
    lies above the last of them; the entries are not cumulative. `total` is the sum of all observed values.
    """

    upper_bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


class HistogramRecorder:
    """Takes values in; one binary search and two additions for each. Negative values count as 0."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, upper_bounds: Sequence[float]) -> None:
        """Raises ValueError unless the bounds ascend."""
        bounds = tuple(float(bound) for bound in upper_bounds)
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"the bounds of a histogram have to ascend; got {bounds}")
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times over."""
        self._counts[bisect_left(self._bounds, value)] += times
        if value > 0:
            self._total += value * times

    def snapshot(self) -> Histogram:
        """All values observed so far."""
        return Histogram(self._bounds, tuple(self._counts), self._total)
