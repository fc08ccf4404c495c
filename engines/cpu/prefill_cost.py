"""How long prompt tokens take beside a step's decodes, learnt from the steps themselves.

A chunk costs something by itself, something for each token (the linear layers), something for each position
it reads from the KV cache, and something for each pair of token and position (attention). After some thousand
positions attention is half of it, so a figure per token alone would be wrong as soon as a prompt gets on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from engines.scheduler import ScheduledSequence

_MEMORY = 0.96  # what a step counts for after the next one of its class
_NUM_SWEEPS = 2
# Steps of nearly one size cannot tell the four apart: what they leave open goes to the first that explains
# it.
_ORDER = (1, 3, 2, 0)

_FIRST_CLASS_POSITIONS = 256
_QUICK_MEMORY = 0.8  # of how the steps of late lie to what all of them together say
_RATIO_BOUNDS = (0.5, 2.0)
_LARGEST_SURPRISE = 3.0  # a step that was held up for seconds says nothing about prompts


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """The chunks of one step: their tokens, the positions they read, and pairs of token and position."""

    num_chunks: int
    num_tokens: int
    num_positions: int
    num_pairs: float

    @classmethod
    def of(cls, chunks: Iterable[ScheduledSequence]) -> PrefillWork:
        """What these chunks are together; asked before the batch is completed."""
        num_chunks = num_tokens = num_positions = 0
        num_pairs = 0.0
        for chunk in chunks:
            num_chunks += 1
            num_tokens += chunk.num_tokens
            num_positions += chunk.end
            num_pairs += _num_pairs(chunk.start, chunk.num_tokens)
        return cls(num_chunks, num_tokens, num_positions, num_pairs)

    @classmethod
    def of_chunk(cls, start: int, num_tokens: int) -> PrefillWork:
        """One chunk of a prompt of which `start` tokens are computed."""
        return cls(1, num_tokens, start + num_tokens, _num_pairs(start, num_tokens))


class PrefillCost:
    """Least squares over the time per token, with a fading memory for each class of context.

    Contexts of one class are within a factor of two of each other. By itself a long prompt's end would make
    forgotten what its beginning was like, and the next prompt's beginning would be a surprise. No part of the
    cost is ever below nothing.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _Moments] = {}
        self._seconds = [0.0] * 4  # of a chunk, a token, a position, a pair
        self._ratio = 1.0

    def record(self, work: PrefillWork, seconds: float) -> None:
        """`work` made a step longer by `seconds`."""
        expected = self._known(work)
        if expected:
            seconds = min(seconds, _LARGEST_SURPRISE * self._ratio * expected)
            low, high = _RATIO_BOUNDS
            ratio = min(high, max(low, seconds / expected))
            self._ratio = _QUICK_MEMORY * self._ratio + (1.0 - _QUICK_MEMORY) * ratio
        mean_context = work.num_positions // work.num_chunks
        moments = self._classes.setdefault((mean_context // _FIRST_CLASS_POSITIONS).bit_length(), _Moments())
        moments.add(_per_token(work), max(0.0, seconds) / work.num_tokens)
        self._solve()

    def predict(self, work: PrefillWork) -> float:
        """Seconds by which `work` will make a step longer."""
        return self._ratio * self._known(work)

    def max_tokens(self, start: int, seconds: float) -> int:
        """The largest chunk from position `start` on that takes no more than `seconds`."""
        chunk, token, position, pair = self._seconds
        left = seconds / self._ratio - chunk - position * start
        if left <= 0.0:
            return 0
        # left = num_tokens * slope + pair / 2 * num_tokens ** 2
        slope = token + position + pair * start
        divisor = slope + math.sqrt(slope * slope + 2.0 * pair * left)
        return int(2.0 * left / divisor) if divisor else sys.maxsize

    def _known(self, work: PrefillWork) -> float:
        return work.num_tokens * sum(map(float.__mul__, _per_token(work), self._seconds))

    def _solve(self) -> None:
        """Towards the least squares over all classes, one figure after the other, from where they are."""
        classes = self._classes.values()
        for _ in range(_NUM_SWEEPS):
            for index in _ORDER:
                missing = sum(moments.missing(index, self._seconds) for moments in classes)
                weight = sum(moments.products[index][index] for moments in classes)
                self._seconds[index] = max(0.0, self._seconds[index] + missing / weight)


class _Moments:
    """Sums over steps for least squares; older ones count less."""

    def __init__(self) -> None:
        self.products = [[0.0] * 4 for _ in range(4)]
        self._targets = [0.0] * 4

    def add(self, features: list[float], target: float) -> None:
        """One more step."""
        for row, feature in zip(self.products, features, strict=True):
            row[:] = [_MEMORY * old + feature * other for old, other in zip(row, features, strict=True)]
        self._targets = [
            _MEMORY * old + feature * target for old, feature in zip(self._targets, features, strict=True)
        ]

    def missing(self, index: int, figures: list[float]) -> float:
        """How much of the target, seen by one feature, the figures leave."""
        return self._targets[index] - sum(map(float.__mul__, self.products[index], figures))


def _num_pairs(start: int, num_tokens: int) -> float:
    return num_tokens * (start + num_tokens / 2)


def _per_token(work: PrefillWork) -> list[float]:
    """So that a step of few tokens says as much as one of many."""
    figures = (work.num_chunks, work.num_tokens, work.num_positions, work.num_pairs)
    return [figure / work.num_tokens for figure in figures]
