"""Log-probabilities of the model's own distribution, from logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.request import TokenLogprob


def log_sum_exp(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of the sum of exponentials of float32 [..., vocab_size] logits, in float64 [...].

    A token's log-probability is its logit less this.
    """
    maximum = rows.max(axis=-1, keepdims=True, initial=-np.inf)
    shifted: NDArray[np.float64] = np.subtract(rows, maximum, dtype=np.float64)
    np.exp(shifted, out=shifted)
    result: NDArray[np.float64] = np.log(shifted.sum(axis=-1)) + maximum[..., 0]
    return result


def token_logprob(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprob:
    """The entry for `token_id` with the `num_top` likeliest tokens of float32 [vocab_size] logits.

    Ties go to the lower id.
    """
    normalizer = float(log_sum_exp(logits))
    chosen = logits[token_id]
    rank = 1 + int(np.count_nonzero(logits > chosen))
    top = tuple((int(best), float(logits[best]) - normalizer) for best in _top(logits, num_top))
    return TokenLogprob(token_id, float(chosen) - normalizer, rank, top)


def _top(logits: NDArray[np.float32], num_top: int) -> NDArray[np.int64]:
    """Ids of the largest logits, largest first."""
    num_top = min(num_top, logits.size)
    if num_top == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(logits, logits.size - num_top)[logits.size - num_top]
    candidates = np.flatnonzero(logits >= threshold)
    return candidates[np.lexsort((candidates, -logits[candidates]))][:num_top]
