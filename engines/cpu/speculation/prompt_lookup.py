"""Guessing the next tokens from an earlier place where the same few tokens stood (prompt lookup decoding)."""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZES = (4, 3, 2)  # tried longest first


class PromptLookup:
    """An index of the n-grams of one growing sequence; a token costs a constant time."""

    def __init__(self) -> None:
        self._num_indexed = 0
        # For each size, the n-gram's latest end; never that of the newest token, which nothing follows yet.
        self._ends: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in NGRAM_SIZES}

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` guesses at what follows `token_ids`, which only ever grows between calls."""
        self._index(token_ids)
        num_tokens = len(token_ids)
        for size in NGRAM_SIZES:
            if size >= num_tokens:
                continue
            end = self._ends[size].get(tuple(token_ids[num_tokens - size :]))
            if end is not None:
                return _continued(token_ids, end, limit)
        return []

    def _index(self, token_ids: Sequence[int]) -> None:
        for end in range(max(1, self._num_indexed), len(token_ids)):
            for size in NGRAM_SIZES:
                if size <= end:
                    self._ends[size][tuple(token_ids[end - size : end])] = end
        self._num_indexed = len(token_ids)


def _continued(token_ids: Sequence[int], end: int, limit: int) -> list[int]:
    """What followed `end`; a text that repeats itself up to its end is taken to go on doing so."""
    period = len(token_ids) - end
    return [token_ids[end + offset % period] for offset in range(limit)]
