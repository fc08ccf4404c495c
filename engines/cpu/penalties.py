"""Penalties on tokens that have been seen: repetition, frequency, presence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.request import SamplingParams

_FIRST_CAPACITY = 64


class TokenPenalties:
    """The tokens one sequence has seen, and what that takes from their logits.

    The work of a step grows with the number of different tokens seen, not with the vocabulary.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self._repetition = np.float32(params.repetition_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        prompt = np.unique(np.asarray(prompt_token_ids, np.int64))
        self._num_seen = prompt.size
        self._ids = np.resize(prompt, max(_FIRST_CAPACITY, 2 * prompt.size)).astype(np.int64)
        self._counts = np.zeros(self._ids.size, np.int32)
        self._place = {token_id: place for place, token_id in enumerate(prompt.tolist())}

    @staticmethod
    def are_wanted(params: SamplingParams) -> bool:
        """Whether any of the three is on."""
        return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)

    def observe(self, token_id: int) -> None:
        """Count a token as generated."""
        place = self._place.setdefault(token_id, self._num_seen)
        if place == self._num_seen:
            if place == self._ids.size:
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = token_id
            self._num_seen += 1
        self._counts[place] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Lower the logits, float32 [vocab_size], in place."""
        ids = self._ids[: self._num_seen]
        counts = self._counts[: self._num_seen]
        values = logits[ids]
        # Repetition penalty: CTRL, arXiv 1909.05858, section 4.1, over prompt and generated tokens.
        values = np.where(values > 0, values / self._repetition, values * self._repetition)
        values -= self._frequency * counts  # in float64, rounded once
        values -= self._presence * (counts > 0)
        logits[ids] = values
