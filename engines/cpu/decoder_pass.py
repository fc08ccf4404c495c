"""Typed facade over the decoder's pass in C++: all layers of a model in one call.

`engines.cpu.models` runs the same kernels one by one and is what the pass computes, bit for bit. Indices are
checked before any access; a bad one raises ValueError, a wrong type TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cpu import _kernels
from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache
from engines.cpu.weights import DenseWeight, Fp4Weight, HeadScreen

Float32Array = NDArray[np.float32]

# InputFormat of csrc/linear_layer.h
_UNQUANTIZED, _MXFP4, _NVFP4 = 0, 1, 2


class LinearLayer:
    """A linear layer as a whole: products of one input side by side, each with its bias or None."""

    __slots__ = ("handle",)

    def __init__(self) -> None:
        self.handle = _kernels.LinearLayer()

    def add_dense(self, weight: DenseWeight, bias: Float32Array | None) -> None:
        """A weight in BF16, FP16 or FP32; bias is float32 [num_rows]."""
        self.handle.add_dense(weight, bias)

    def add_fp4(self, weight: Fp4Weight, bias: Float32Array | None) -> None:
        """FP4 weights times activations as they are: `kernels.fp4_linear_w4a16`."""
        self.handle.add_fp4(weight, _UNQUANTIZED, 0.0, False, bias)

    def add_quantized_fp4(
        self,
        weight: Fp4Weight,
        input_scale: float | None,
        *,
        modelopt: bool,
        bias: Float32Array | None,
    ) -> None:
        """FP4 weights times FP4 activations: MXFP4 without an input scale, NVFP4 with one."""
        input_format = _MXFP4 if input_scale is None else _NVFP4
        self.handle.add_fp4(weight, input_format, input_scale or 0.0, modelopt, bias)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes that every layer shares; a sliding window of 0 is none."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int


@dataclass(frozen=True, slots=True)
class PassLayer:
    """One layer: norms float32 [hidden_size]; a router where there are several experts (gate_up, down)."""

    input_norm: Float32Array
    qkv: LinearLayer
    output: LinearLayer
    post_attention_norm: Float32Array
    router: LinearLayer | None
    num_experts_per_token: int
    experts: Sequence[tuple[LinearLayer, LinearLayer]]


class DecoderPass:
    """The whole model, from token ids to logits. Keeps what it reads alive; one call at a time.

    `embedding` [vocab_size, hidden_size] is bfloat16 as uint16, float16 or float32; `cos` and `sin` are
    float32 [max_model_len, head_dim / 2]; `screen` is the head's, or None. ValueError for sizes that do not
    fit together.
    """

    def __init__(
        self,
        shape: AttentionShape,
        embedding: NDArray[Any],
        cos: Float32Array,
        sin: Float32Array,
        layers: Sequence[PassLayer],
        final_norm: Float32Array,
        head: LinearLayer,
        screen: HeadScreen | None,
        rms_norm_eps: float,
    ) -> None:
        self._pass = _kernels.DecoderPass(
            embedding,
            cos,
            sin,
            final_norm,
            head.handle,
            screen,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.sliding_window,
            rms_norm_eps,
        )
        for layer in layers:
            self._pass.add_layer(
                layer.input_norm,
                layer.qkv.handle,
                layer.output.handle,
                layer.post_attention_norm,
                None if layer.router is None else layer.router.handle,
                layer.num_experts_per_token,
                [(gate_up.handle, down.handle) for gate_up, down in layer.experts],
            )

    def run(
        self, batch: ForwardBatch, cache: KvCache, logits: Float32Array | None, likeliest: NDArray[np.int64]
    ) -> None:
        """Fill `logits`, float32 [num_logits_rows, vocab_size], and the batch's slots of `cache`.

        `likeliest`, int64 [num_logits_rows], becomes `token_draw.likeliest_tokens` of the logits. With a
        screen of the head they need not be computed: None leaves them out.
        """
        self._pass.run(
            batch.token_ids,
            batch.positions,
            batch.slots,
            batch.block_tables,
            batch.query_starts,
            batch.context_lens,
            batch.logits_rows,
            cache.keys,
            cache.values,
            logits,
            likeliest,
        )
