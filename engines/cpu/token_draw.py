"""The next token from a row of logits: the likeliest, or a draw among those that the filters leave.

A weight is a token's probability relative to the likeliest one's, as a whole number; they sum up to less than
2^53, so that float64 sums are exact in whatever order they are made. The kernel may therefore bin tokens by
weight and skip whole blocks, and still draws what sorting the vocabulary would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels
from engines.cpu.array_checks import FLOAT32, check_array
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]

NOT_FINITE = -1
"""In place of a row's likeliest token."""

_MANTISSA_BITS = 53
# What lies beyond is greedy, or uniform, as these already are; its inverse would be inf, or 0, in float32.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-30, 1e30
_LARGEST = float(np.finfo(np.float32).max)


class LogitsPeak(NamedTuple):
    """The largest of a row of logits, the first of equal ones."""

    token_id: int
    logit: float
    all_finite: bool
    """Of the row."""


def logits_peak(logits: Float32Array) -> LogitsPeak:
    """The largest of float32 [vocab_size] logits, at least one."""
    check_array("logits", logits, FLOAT32, (None,))
    return LogitsPeak(*_kernels.logits_peak(logits))


def likeliest_tokens(logits: Float32Array) -> NDArray[np.int64]:
    """Each row's largest of float32 [num_rows, vocab_size] logits, the first of equal ones, at least one.

    NOT_FINITE for a row in which a number is not.
    """
    check_array("logits", logits, FLOAT32, (None, None))
    likeliest = np.empty(logits.shape[0], np.int64)
    _kernels.likeliest_tokens(logits, likeliest)
    return likeliest


def weight_bits(vocab_size: int) -> int:
    """The exponent of the largest weight for which a vocabulary sums to less than 2^53: 35 for 131,072."""
    return _MANTISSA_BITS - vocab_size.bit_length()


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
            1.0 / min(max(params.temperature, _LOWEST_TEMPERATURE), _HIGHEST_TEMPERATURE),
            2.0 ** weight_bits(vocab_size),
            distance,
            max(params.top_k, 0),
            params.top_p,
        )

    def token(self, logits: Float32Array, uniform: float) -> int:
        """The token at which the running sum of the weights left passes `uniform`, in [0, 1), of all.

        Of float32 [vocab_size] logits those more than `min_p_distance` below the largest are left out first
        (infinity: none), then all but the `top_k` largest (0: all), then all but the fewest likeliest whose
        share reaches `top_p` (1: all); of equal ones lower ids are kept.
        """
        return draw_tokens([(logits, self, uniform)])[0]


def draw_tokens(draws: Sequence[tuple[Float32Array, Draw, float]]) -> list[int]:
    """`Draw.token` of each (logits, draw, uniform), at least one, on all threads."""
    rows = [row for row, _, _ in draws]
    for row in rows:
        check_array("logits", row, FLOAT32, (None,))
    arguments = np.array(
        [
            (
                draw.inverse_temperature,
                draw.weight_scale,
                draw.min_p_distance,
                draw.top_k,
                draw.top_p,
                uniform,
            )
            for _, draw, uniform in draws
        ],
        np.float64,
    )
    return _kernels.draw_tokens(rows, arguments)


def philox_uniform(seed: int, position: int) -> float:
    """NumPy's `Generator(Philox(key=seed, counter=position)).random()`, for 0 <= seed, position < 2^64."""
    return _kernels.philox_uniform(seed, position)
