"""The filters and the draw of a token by their definitions, which sort the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels
from engines.cpu.token_draw import Draw
from engines.request import SamplingParams

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
TokenIds = NDArray[np.int64]


def ranked(values: NDArray[np.floating]) -> TokenIds:
    """Indices from the largest value to the smallest, equal ones by index."""
    return np.argsort(-values, kind="stable")


def exact_weights(logits: Float32Array, temperature: float) -> Float64Array:
    """The whole numbers that the kernel draws by."""
    draw = Draw.of(SamplingParams(temperature=temperature), logits.size)
    weights = np.empty_like(logits)
    maximum = float(logits.max())
    _kernels.token_weights(logits, maximum, draw.inverse_temperature, draw.weight_scale, weights)
    return weights.astype(np.float64)


def probabilities_of(logits: Float32Array, temperature: float) -> Float64Array:
    """Relative to the likeliest token's."""
    return np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)


def kept_by_sorting(logits: Float32Array, weights: Float64Array, params: SamplingParams) -> TokenIds:
    """What min-p, then top-k (both by logits), then top-p (by weights) leave: ascending ids."""
    ids = np.arange(logits.size)
    if params.min_p > 0:
        distance = min(-params.temperature * math.log(params.min_p), 3e38)
        ids = ids[logits.max() - logits <= np.float32(distance)]
    if params.top_k > 0:
        ids = np.sort(ids[ranked(logits[ids])[: params.top_k]])
    order = ids[ranked(weights[ids])]  # of equal weights the lower ids, whatever their logits
    order = order[weights[order] > 0]
    if params.top_p < 1:
        reached = np.cumsum(weights[order]) >= params.top_p * weights[order].sum()
        order = order[: int(reached.argmax()) + 1]
    return np.sort(order)


def drawn_by_sorting(logits: Float32Array, params: SamplingParams, uniform: float) -> int:
    """The token at which the running sum of the kept weights passes `uniform` of their whole."""
    weights = exact_weights(logits, params.temperature)
    kept = kept_by_sorting(logits, weights, params)
    sums = np.cumsum(weights[kept])
    return int(kept[np.flatnonzero(sums > uniform * sums[-1])[0]])
