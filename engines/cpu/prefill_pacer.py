"""How much of a prompt a step may take in while other sequences decode, so that their tokens keep coming.

A step's time is a decode's plus what its prompt tokens add. Both are learnt from the steps themselves, since
they depend on the processor, the model and the contexts; so is how far steps lie from what was expected of
them, for it is nearly all steps that are to stay within the bound and not the average one.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from engines.cpu.prefill_cost import PrefillCost, PrefillWork

FIRST_CHUNK = 8  # while nothing is known
_GROWTH = 2  # of a chunk over the last one: what is known of other sizes and contexts may not hold for these
SMALLEST_CHUNK = 4  # a prompt gets on even where reading its context takes all the time there is

_NUM_DECODE_STEPS = 15  # a median does not mind the odd step that something else held up
_MEMORY = 0.95  # of the running mean of deviations
_NUM_DEVIATIONS = 2.0  # mean absolute ones: 19 of 20 steps are within them
_LARGEST_DEVIATION = 0.1  # that counts: a prompt does not pay for all that happens on a busy machine


class PrefillPacer:
    """Bounds steps that decode and prefill to `stretch` times a step that only decodes."""

    def __init__(self, stretch: float) -> None:
        if not stretch >= 1.0:
            raise ValueError(f"stretch is {stretch}; expected at least 1")
        self._stretch = stretch
        self._decode_seconds: dict[int, deque[float]] = {}  # by number of sequences
        self._cost = PrefillCost()
        self._deviation = 0.0
        self._last_chunk = 0  # tokens, in the last step of both kinds

    def max_prefill_tokens(self, num_decodes: int, start: int) -> int:
        """Prompt tokens for a step in which `num_decodes` sequences decode; at least SMALLEST_CHUNK.

        They are those of a prompt of which `start` tokens are computed.
        """
        decode = self._decode_step_seconds(num_decodes)
        if decode is None or not self._last_chunk:
            return FIRST_CHUNK
        seconds = self._stretch / (1.0 + _NUM_DEVIATIONS * self._deviation) * decode - decode
        limit = _GROWTH * max(FIRST_CHUNK, self._last_chunk)
        return min(limit, max(SMALLEST_CHUNK, self._cost.max_tokens(start, seconds)))

    def record(self, num_decodes: int, work: PrefillWork, seconds: float) -> None:
        """A step of so many decoding sequences (drafts none) and that prefill took `seconds`."""
        if not num_decodes:
            return
        decode = self._decode_step_seconds(num_decodes)
        # Prompts that follow each other without a break leave no step that only decodes: then the first of
        # the others, of few prompt tokens, stands for it.
        if work.num_tokens == 0 or decode is None:
            self._decode_seconds.setdefault(num_decodes, deque(maxlen=_NUM_DECODE_STEPS)).append(seconds)
            return
        if self._last_chunk:
            expected = decode + self._cost.predict(work)
            deviation = min(_LARGEST_DEVIATION, abs(seconds / expected - 1.0))
            self._deviation = _MEMORY * self._deviation + (1.0 - _MEMORY) * deviation
        self._cost.record(work, seconds - decode)
        self._last_chunk = work.num_tokens

    def _decode_step_seconds(self, num_decodes: int) -> float | None:
        """Of the nearest number of sequences that has been timed."""
        if not self._decode_seconds:
            return None
        nearest = min(self._decode_seconds, key=lambda number: abs(number - num_decodes))
        return median(self._decode_seconds[nearest])
