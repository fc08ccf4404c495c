"""From a model's layers to the pass in C++ that runs them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cpu.decoder_pass import DecoderPass, LinearLayer, PassLayer
from engines.cpu.linear import CompiledLinear, DenseLinear, Linear
from engines.cpu.models.layer import DecoderLayer
from engines.cpu.models.mlp import FeedForward, GatedMlp, MixtureOfExperts
from engines.cpu.weights import HeadScreen

Float32Array = NDArray[np.float32]


class NotCompiled(Exception):
    """A layer has no counterpart in C++: reference numerics, or a layer that somebody watches."""


def compile_pass(
    embedding: NDArray[Any],
    layers: Sequence[DecoderLayer],
    final_norm: Float32Array,
    head: Linear,
    screen: HeadScreen | None,
    rms_norm_eps: float,
) -> DecoderPass | None:
    """The pass over `layers`, or None when one of them runs in Python only."""
    if not layers:
        return None
    try:
        compiled = [_layer(layer) for layer in layers]
        compiled_head = _linear(head)
    except NotCompiled:
        return None
    attention = layers[0].attention
    return DecoderPass(
        attention.shape,
        embedding,
        attention.rope.cos,
        attention.rope.sin,
        compiled,
        final_norm,
        compiled_head,
        screen,
        rms_norm_eps,
    )


def head_screen(head: Linear) -> HeadScreen | None:
    """A screen of an unquantized head without a bias; None where there is none."""
    if not isinstance(head, DenseLinear) or not HeadScreen.fits(head.weight.num_columns):
        return None
    return HeadScreen(head.weight)


def _layer(layer: DecoderLayer) -> PassLayer:
    router, num_experts_per_token, experts = _feed_forward(layer.feed_forward)
    return PassLayer(
        input_norm=layer.input_norm,
        qkv=_linear(layer.attention.qkv),
        output=_linear(layer.attention.output),
        post_attention_norm=layer.post_attention_norm,
        router=router,
        num_experts_per_token=num_experts_per_token,
        experts=[(_linear(expert.gate_up), _linear(expert.down)) for expert in experts],
    )


def _feed_forward(feed_forward: FeedForward) -> tuple[LinearLayer | None, int, Sequence[GatedMlp]]:
    if isinstance(feed_forward, MixtureOfExperts):
        return _linear(feed_forward.router), feed_forward.num_experts_per_token, feed_forward.experts
    if isinstance(feed_forward, GatedMlp):
        return None, 1, (feed_forward,)
    raise NotCompiled


def _linear(linear: Linear) -> LinearLayer:
    layer = LinearLayer()
    if isinstance(linear, CompiledLinear) and linear.add_to(layer):
        return layer
    raise NotCompiled
