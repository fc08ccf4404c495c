"""The paged KV cache's memory: how much it takes, and its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.model_config import ModelConfig
from engines.errors import InvalidRequest, StartFailed

_ELEMENT_BYTES = {"auto": 2, "bfloat16": 2, "fp8": 1}
KV_CACHE_DTYPES = tuple(_ELEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class KvCacheShape:
    """Blocks of `block_size` tokens; `element_bytes` is 4 (float32), 2 (bfloat16) or 1 (E4M3, with a byte
    more per token and head for the scale)."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    element_bytes: int

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        block_size: int,
        *,
        reference_numerics: bool,
        kv_cache_dtype: str = "auto",
    ) -> KvCacheShape:
        """The shape `config` needs: float32 in reference numerics, else what `kv_cache_dtype` says.

        `kv_cache_dtype` as in `engines.base.EngineOptions`. Raises InvalidRequest for another one, or for
        one that reference numerics do not have.
        """
        if kv_cache_dtype not in KV_CACHE_DTYPES:
            raise InvalidRequest(
                f"kv_cache_dtype {kv_cache_dtype!r:.50} is unknown; "
                f"expected one of: {', '.join(KV_CACHE_DTYPES)}"
            )
        if reference_numerics and kv_cache_dtype != "auto":
            raise InvalidRequest(
                f"kv_cache_dtype {kv_cache_dtype!r} is for fast numerics; reference numerics keep the KV "
                "cache in float32 (leave out --kv-cache-dtype, or choose --numerics fast)"
            )
        return cls(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            element_bytes=4 if reference_numerics else _ELEMENT_BYTES[kv_cache_dtype],
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.row_bytes * self.block_size

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's keys, or values, of one head."""
        return self.head_dim * self.element_bytes + (1 if self.element_bytes == 1 else 0)

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
    """Keys and values of every layer: [num_blocks, num_kv_heads, block_size, head_dim] each, for E4M3
    head_dim + 1 (`kernels.kv_write` says what is where).

    Pages are zero until first written, so untouched blocks cost no resident memory.
    """

    def __init__(self, shape: KvCacheShape, num_blocks: int) -> None:
        dtype = {4: np.float32, 2: np.uint16, 1: np.uint8}[shape.element_bytes]
        row_elements = shape.row_bytes // shape.element_bytes
        dims = (num_blocks, shape.num_kv_heads, shape.block_size, row_elements)
        self.keys: list[NDArray[Any]] = [np.zeros(dims, dtype) for _ in range(shape.num_layers)]
        self.values: list[NDArray[Any]] = [np.zeros(dims, dtype) for _ in range(shape.num_layers)]
        self.num_blocks = num_blocks
