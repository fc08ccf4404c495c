"""Grouped-query attention over the paged KV cache, with rotary positions and an optional sliding window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.model_config import ModelConfig
from engines.cpu import kernels
from engines.cpu.decoder_pass import AttentionShape
from engines.cpu.forward_batch import ForwardBatch
from engines.cpu.kv_cache import KvCache
from engines.cpu.linear import Linear
from engines.cpu.workspace import Workspace

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RopeTables:
    """float32 [max_model_len, head_dim / 2] each."""

    cos: Float32Array
    sin: Float32Array


class Attention:
    """One layer's attention: q, k and v in one product, the paged kernel, the output product."""

    def __init__(
        self, config: ModelConfig, layer: int, qkv: Linear, output: Linear, rope: RopeTables
    ) -> None:
        self.shape = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window or 0
        )
        self.qkv = qkv
        self.output = output
        self.rope = rope
        self._layer = layer

    def __call__(
        self, x: Float32Array, batch: ForwardBatch, cache: KvCache, out: Float32Array, workspace: Workspace
    ) -> None:
        """x and out: float32 [num_rows, hidden_size]. Writes the rows' keys and values into `cache`."""
        num_rows, head_dim = x.shape[0], self.shape.head_dim
        qkv = workspace.array("qkv", (num_rows, self.qkv.num_rows))
        self.qkv(x, qkv, workspace)
        q, k, v = self._split(qkv, workspace)
        kernels.rope(q, batch.positions, self.rope.cos, self.rope.sin)
        kernels.rope(k, batch.positions, self.rope.cos, self.rope.sin)
        keys, values = cache.keys[self._layer], cache.values[self._layer]
        kernels.kv_write(k, v, batch.slots, keys, values)
        attended = workspace.array("attended", (num_rows, self.shape.num_heads, head_dim))
        kernels.paged_attention(
            q,
            keys,
            values,
            batch.block_tables,
            batch.query_starts,
            batch.context_lens,
            head_dim**-0.5,
            self.shape.sliding_window,
            attended,
        )
        self.output(attended.reshape(num_rows, self.shape.num_heads * head_dim), out, workspace)

    def _split(
        self, qkv: Float32Array, workspace: Workspace
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Contiguous q [M, num_heads, head_dim], k and v [M, num_kv_heads, head_dim]."""
        num_rows = qkv.shape[0]
        parts: list[Float32Array] = []
        start = 0
        for name, heads in (
            ("q", self.shape.num_heads),
            ("k", self.shape.num_kv_heads),
            ("v", self.shape.num_kv_heads),
        ):
            width = heads * self.shape.head_dim
            part = workspace.array(name, (num_rows, width))
            np.copyto(part, qkv[:, start : start + width])
            parts.append(part.reshape(num_rows, heads, self.shape.head_dim))
            start += width
        return parts[0], parts[1], parts[2]
