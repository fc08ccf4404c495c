"""The tokens that may be drawn, and the draw: filters over logits and weights that do not sort a vocabulary.

A weight is a token's probability relative to the likeliest one's, as a whole number; they sum up to less than
2^53, so that float64 sums are exact in whatever order they are made. A filter may therefore look at the head
of the distribution only and keep what sorting all of it would have kept, and a draw may skip over blocks.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Indices = NDArray[np.int64]

_MANTISSA_BITS = 53
_BLOCK = 256
_HEAD_SIZE = 1024  # of the likeliest tokens; more are sorted only when these do not reach top_p
# exp() of less rounds to no weight anyway, and its denormal results would be slow to compute with.
_LOWEST_EXPONENT = np.float32(-80.0)
# What lies beyond is greedy, or uniform, as these already are; its inverse would be inf, or 0, in float32.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-30, 1e30
_LARGEST = float(np.finfo(np.float32).max)


def weight_bits(vocab_size: int) -> int:
    """The exponent of the largest weight for which a vocabulary sums to less than 2^53: 35 for 131,072."""
    return _MANTISSA_BITS - vocab_size.bit_length()


def weights_of(logits: Float32Array, maximum: np.float32, temperature: float, num_bits: int) -> Float32Array:
    """Whole numbers, float32: 2^num_bits exp((logit - maximum) / temperature), rounded; 0 for -inf."""
    inverse = np.float32(1.0 / min(max(temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE))
    with np.errstate(over="ignore"):
        weights = logits - maximum  # before the product, so that the largest logit does not overflow
        weights *= inverse
    np.maximum(weights, _LOWEST_EXPONENT, out=weights)
    np.exp(weights, out=weights)
    weights *= np.float32(2.0**num_bits)
    return np.rint(weights, out=weights)


def keep_min_p(logits: Float32Array, maximum: np.float32, temperature: float, min_p: float) -> Indices:
    """The tokens at least `min_p` times as likely as the likeliest, ascending. `min_p` is above 0."""
    distance = max(temperature, _LOWEST_TEMPERATURE) * -math.log(min_p)
    with np.errstate(over="ignore"):
        return np.flatnonzero(maximum - logits <= np.float32(min(distance, _LARGEST)))


def keep_top_k(logits: Float32Array, top_k: int) -> Indices:
    """The `top_k` best, ascending; ties at the edge go to the lower index. 0 < top_k < len(logits)."""
    threshold = np.partition(logits, logits.size - top_k)[logits.size - top_k]
    best = np.flatnonzero(logits >= threshold)
    if best.size > top_k:
        surplus = np.flatnonzero(logits[best] == threshold)[top_k - best.size :]
        best = np.delete(best, surplus)
    return best


def keep_top_p(weights: Float32Array, top_p: float) -> Indices:
    """The smallest set of likeliest tokens whose share reaches `top_p` (arXiv 1904.09751), ascending.

    Of equal weights the lower indices are kept. 0 < top_p < 1.
    """
    needed = top_p * float(weights.sum(dtype=np.float64))
    ordered = _largest_first(weights, needed)
    num_kept = _first_sum(ordered, needed, "left") + 1
    threshold = ordered[num_kept - 1]
    is_kept = weights >= threshold
    surplus = int(np.count_nonzero(is_kept)) - num_kept
    if surplus:
        is_kept[np.flatnonzero(weights == threshold)[-surplus:]] = False
    return np.flatnonzero(is_kept)


def pick(weights: Float32Array, uniform: float) -> int:
    """The index at which the running sum passes `uniform`, in [0, 1), of the whole; never one of weight 0."""
    return _first_sum(weights, uniform, "right", is_share=True)


def _largest_first(weights: Float32Array, needed: float) -> Float32Array:
    """The largest weights in falling order, as many as sum up to `needed` at least."""
    if weights.size > _HEAD_SIZE:
        head = np.partition(weights, weights.size - _HEAD_SIZE)[-_HEAD_SIZE:]
        if head.sum(dtype=np.float64) >= needed:
            return np.sort(head)[::-1]
    return np.sort(weights)[::-1]


def _first_sum(
    weights: Float32Array, target: float, side: Literal["left", "right"], *, is_share: bool = False
) -> int:
    """The index whose running sum is the first to reach ("left") or to pass ("right") `target`.

    `is_share`: the target is that part of the whole sum.
    """
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK), dtype=np.float64))
    if is_share:
        target *= float(sums[-1])
    block = min(int(np.searchsorted(sums, target, side)), sums.size - 1)
    before = sums[block - 1] if block else 0.0
    within = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + min(int(np.searchsorted(within, target - before, side)), within.size - 1)
