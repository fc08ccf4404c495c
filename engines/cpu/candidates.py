"""The draw of a token from a row of logits, as the kernel takes it.

A weight is a token's probability relative to the likeliest one's, as a whole number; they sum up to less than
2^53, so that float64 sums are exact in whatever order they are made. A filter may therefore look at the head
of the distribution only and keep what sorting all of it would have kept, and a draw may skip over blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.cpu import kernels
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]

_MANTISSA_BITS = 53
# What lies beyond is greedy, or uniform, as these already are; its inverse would be inf, or 0, in float32.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-30, 1e30
_LARGEST = float(np.finfo(np.float32).max)


def weight_bits(vocab_size: int) -> int:
    """The exponent of the largest weight for which a vocabulary sums to less than 2^53: 35 for 131,072."""
    return _MANTISSA_BITS - vocab_size.bit_length()


def weights_of(logits: Float32Array, maximum: float, temperature: float, num_bits: int) -> Float32Array:
    """Whole numbers, float32: 2^num_bits exp((logit - maximum) / temperature), rounded; 0 for -inf."""
    return kernels.token_weights(logits, maximum, _inverse(temperature), 2.0**num_bits)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a request's parameters say of a draw, made once; `temperature` must be above 0."""

    inverse_temperature: float
    weight_scale: float
    min_p_distance: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int) -> Draw:
        """The filters and the temperature of `params` over a vocabulary."""
        distance = math.inf
        if params.min_p > 0.0:
            distance = min(max(params.temperature, _LOWEST_TEMPERATURE) * -math.log(params.min_p), _LARGEST)
        return cls(
            _inverse(params.temperature),
            2.0 ** weight_bits(vocab_size),
            distance,
            max(params.top_k, 0),
            params.top_p,
        )

    def token(self, logits: Float32Array, uniform: float) -> int:
        """The token for a draw of `uniform`, in [0, 1)."""
        return kernels.draw_token(
            logits,
            self.inverse_temperature,
            self.weight_scale,
            self.min_p_distance,
            self.top_k,
            self.top_p,
            uniform,
        )


def _inverse(temperature: float) -> float:
    return 1.0 / min(max(temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE)
