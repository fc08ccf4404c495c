"""The scale of an FP8 KV cache, which modelopt stores beside k_proj and v_proj."""

from __future__ import annotations

import numpy as np

from engines.checkpoint.checkpoint import Checkpoint
from engines.trtllm.errors import BuildRefused


def kv_cache_scale(checkpoint: Checkpoint, layer: int) -> np.float32:
    """The larger of the layer's k_scale and v_scale (amax / 448), or 1 when it has none. BuildRefused."""
    found = []
    for name in ("k", "v"):
        tensor = f"model.layers.{layer}.self_attn.{name}_proj.{name}_scale"
        info = checkpoint.tensors.get(tensor)
        if info is None:
            continue
        if info.dtype != "F32" or info.shape not in ((), (1,)):
            raise BuildRefused(f"{info}: is {info.dtype} {list(info.shape)}; expected one F32 number")
        value = np.float32(checkpoint.tensors.view(tensor).reshape(()))
        if not (np.isfinite(value) and value > 0 and np.isfinite(np.float32(1) / value)):
            raise BuildRefused(f"{info}: is {value}; expected a finite scale above 0")
        found.append(value)
    return max(found, default=np.float32(1))
