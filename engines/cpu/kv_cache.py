"""The paged KV cache's memory: how much it takes, and its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.model_config import ModelConfig
from engines.errors import StartFailed


@dataclass(frozen=True, slots=True)
class KvCacheShape:
    """Blocks of `block_size` tokens; `element_bytes` is 4 (float32) or 2 (bfloat16)."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    element_bytes: int

    @classmethod
    def of(cls, config: ModelConfig, block_size: int, *, reference_numerics: bool) -> KvCacheShape:
        """The shape `config` needs: float32 in reference numerics, else bfloat16."""
        return cls(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            element_bytes=4 if reference_numerics else 2,
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.element_bytes
        return per_token * self.block_size

    def num_blocks_within(self, memory_bytes: int, max_model_len: int) -> int:
        """How many blocks fit; raises StartFailed when not even one full-length sequence would."""
        num_blocks = memory_bytes // self.block_bytes
        needed = -(-max_model_len // self.block_size)
        if num_blocks < needed:
            raise StartFailed(
                f"the KV cache has {memory_bytes / 2**20:,.1f} MiB, room for "
                f"{num_blocks * self.block_size:,} tokens, but one sequence of max_model_len "
                f"{max_model_len:,} needs {needed * self.block_bytes / 2**20:,.1f} MiB; "
                "raise --kv-cache-memory or lower --max-model-len"
            )
        return num_blocks


class KvCache:
    """Keys and values of every layer: [num_blocks, num_kv_heads, block_size, head_dim] each.

    Pages are zero until first written, so untouched blocks cost no resident memory.
    """

    def __init__(self, shape: KvCacheShape, num_blocks: int) -> None:
        dtype = np.float32 if shape.element_bytes == 4 else np.uint16
        dims = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.keys: list[NDArray[Any]] = [np.zeros(dims, dtype) for _ in range(shape.num_layers)]
        self.values: list[NDArray[Any]] = [np.zeros(dims, dtype) for _ in range(shape.num_layers)]
        self.num_blocks = num_blocks
