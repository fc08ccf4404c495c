"""How much of a prompt a step may take in while other sequences decode, so that their tokens keep coming.

A step's time is a decode's plus what its prompt tokens add. Both are learnt from the steps themselves, since
they depend on the processor, the model and the contexts.
"""

from __future__ import annotations

_MEMORY = 0.8  # of the running means
SMALLEST_CHUNK = 8  # a prompt gets on even where decoding is that quick


class PrefillPacer:
    """Bounds steps that decode and prefill to `stretch` times a step that only decodes."""

    def __init__(self, stretch: float) -> None:
        if stretch < 1.0:
            raise ValueError(f"stretch is {stretch}; expected at least 1")
        self._stretch = stretch
        self._decode_seconds: dict[int, float] = {}  # by number of sequences
        self._token_seconds: float | None = None

    def max_prefill_tokens(self, num_decodes: int) -> int:
        """Prompt tokens for a step in which `num_decodes` sequences decode; at least SMALLEST_CHUNK."""
        decode = self._decode_step_seconds(num_decodes)
        if decode is None or not self._token_seconds:
            return SMALLEST_CHUNK
        return max(SMALLEST_CHUNK, int((self._stretch - 1.0) * decode / self._token_seconds))

    def record(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """A step of so many decoding sequences (drafts none) and prompt tokens took `seconds`."""
        if num_prefill_tokens == 0:
            known = self._decode_seconds.get(num_decodes)
            self._decode_seconds[num_decodes] = _blended(known, seconds)
            return
        decode = self._decode_step_seconds(num_decodes) or 0.0 if num_decodes else 0.0
        if num_prefill_tokens >= SMALLEST_CHUNK and seconds > decode:
            self._token_seconds = _blended(self._token_seconds, (seconds - decode) / num_prefill_tokens)

    def _decode_step_seconds(self, num_decodes: int) -> float | None:
        """Of the nearest number of sequences that has been timed."""
        if not self._decode_seconds:
            return None
        nearest = min(self._decode_seconds, key=lambda number: abs(number - num_decodes))
        return self._decode_seconds[nearest]


def _blended(mean: float | None, figure: float) -> float:
    return figure if mean is None else _MEMORY * mean + (1.0 - _MEMORY) * figure
