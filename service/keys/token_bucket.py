"""An allowance per minute that fills up evenly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class TokenBucket:
    """Holds up to a minute's allowance. The clock has to be monotonic.

    The level may become negative when more is used than was announced; it has to be made up for.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._as_of = clock()

    @property
    def level(self) -> float:
        """What may be taken now. Changes nothing, so that another thread may ask."""
        return min(self.per_minute, self._level + (self._clock() - self._as_of) * self.per_minute / 60)

    @property
    def remaining(self) -> int:
        """The level in whole units, at least 0."""
        return max(0, math.floor(self.level + 1e-9))

    def take(self, amount: float) -> None:
        """Take, also more than there is; a negative amount is given back."""
        now = self._clock()
        level = self._level + (now - self._as_of) * self.per_minute / 60
        self._level = min(self.per_minute, min(self.per_minute, level) - amount)
        self._as_of = now

    def seconds_until(self, amount: float) -> float:
        """How long until so much may be taken; 0 if it may now."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)

    @property
    def seconds_until_full(self) -> float:
        """How long until the whole allowance is there."""
        return self.seconds_until(self.per_minute)
