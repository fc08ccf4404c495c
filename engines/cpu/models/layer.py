"""One layer of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.cpu.models.attention import Attention
from engines.cpu.models.mlp import FeedForward

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Pre-norm residual layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    input_norm: Float32Array  # [hidden_size]
    attention: Attention
    post_attention_norm: Float32Array  # [hidden_size]
    feed_forward: FeedForward
