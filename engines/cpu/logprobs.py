"""Log-probabilities of the model's own distribution, for one row of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.request import TokenLogprob


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stable log-softmax of float32 [vocab_size], summed in float64."""
    shifted = logits - logits.max()
    log_sum = np.log(np.exp(shifted, dtype=np.float64).sum())
    result: NDArray[np.float32] = (shifted - log_sum).astype(np.float32)
    return result


def token_logprob(logprobs: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprob:
    """The entry for `token_id` with the `num_top` likeliest tokens; ties go to the lower id."""
    chosen = logprobs[token_id]
    rank = 1 + int(np.count_nonzero(logprobs > chosen))
    return TokenLogprob(token_id, float(chosen), rank, _top(logprobs, num_top))


def _top(logprobs: NDArray[np.float32], num_top: int) -> tuple[tuple[int, float], ...]:
    if num_top == 0:
        return ()
    num_top = min(num_top, logprobs.size)
    threshold = np.partition(logprobs, logprobs.size - num_top)[logprobs.size - num_top]
    candidates = np.flatnonzero(logprobs >= threshold)
    best = candidates[np.lexsort((candidates, -logprobs[candidates]))][:num_top]
    return tuple((int(token_id), float(logprobs[token_id])) for token_id in best)
