"""How large the KV cache may be, and whether the model fits at all.

On GB10 the GPU uses the machine's own memory: what the runtime calls free GPU memory is what the operating
system, this process and everybody else need too, so its usual "90 percent of what is free" ends in the
out-of-memory killer. There the budget is made from what the kernel says is available.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from engines.base import EngineOptions
from engines.errors import StartFailed
from engines.host_memory import MEMINFO, read_meminfo
from engines.trtllm.machine import Gpu
from engines.trtllm.model_facts import ModelFacts

_logger = logging.getLogger(__name__)
_GIB = 1024**3
UNIFIED_MEMORY_SMS = frozenset({121})  # GB10
# CUDA context, activations, autotuner workspaces and graphs, and room for the operating system. An estimate:
# nobody has measured it on the hardware yet.
RUNTIME_RESERVE_BYTES = 8 * _GIB
FREE_GPU_MEMORY_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class KvCacheBudget:
    """What KvCacheConfig is told. `max_tokens` None leaves it to `free_gpu_memory_fraction`."""

    max_tokens: int | None
    free_gpu_memory_fraction: float = FREE_GPU_MEMORY_FRACTION


def has_unified_memory(gpu: Gpu) -> bool:
    """Whether the GPU's memory is the machine's: GB10, or a GPU whose driver states no memory of its own."""
    return gpu.sm in UNIFIED_MEMORY_SMS or gpu.memory_bytes is None


def available_memory_bytes(path: Path = MEMINFO) -> int:
    """MemAvailable of the kernel; here no guess will do. Raises StartFailed when it cannot be read."""
    try:
        available = read_meminfo(path).get("MemAvailable")
    except (OSError, ValueError) as error:
        raise StartFailed(f"{path} cannot be read to size the KV cache: {error}") from error
    if available is None:
        raise StartFailed(f"{path} has no MemAvailable; expected that of Linux 3.14 or later")
    return available


def kv_cache_budget(
    options: EngineOptions,
    facts: ModelFacts,
    gpu: Gpu,
    *,
    max_model_len: int,
    kv_cache_dtype: str,
    available_bytes: int | None = None,
) -> KvCacheBudget:
    """Size the KV cache before anything is loaded; `available_bytes` defaults to the kernel's figure.

    Raises StartFailed when not even one sequence of `max_model_len` tokens would fit.
    """
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size
    per_token = facts.kv_bytes_per_token(kv_cache_dtype, tensor, pipeline)
    weights = -(-facts.weight_bytes // (tensor * pipeline))  # a machine with such memory has one GPU
    wanted = options.max_num_seqs * max_model_len
    asked = options.kv_cache_memory_bytes
    if asked is not None and asked < per_token * max_model_len:
        raise StartFailed(
            f"a KV cache of {_gib(asked)} holds {asked // per_token:,} tokens; expected at least one "
            f"context, {max_model_len:,} tokens ({_gib(per_token * max_model_len)}). Raise --kv-cache-memory "
            "or lower --max-model-len"
        )
    if not has_unified_memory(gpu):
        return KvCacheBudget(None if asked is None else asked // per_token)
    available = available_memory_bytes() if available_bytes is None else available_bytes
    room = available - weights - RUNTIME_RESERVE_BYTES
    if room < per_token * max_model_len:
        raise StartFailed(
            f"{gpu.name} shares the machine's memory, of which {_gib(available)} are available: the "
            f"weights take {_gib(weights)}, the runtime about {_gib(RUNTIME_RESERVE_BYTES)}, "
            f"and a context of {max_model_len:,} tokens {_gib(per_token * max_model_len)}. End other "
            "programs, drop the page cache (sync; echo 3 > /proc/sys/vm/drop_caches) or lower --max-model-len"
        )
    if asked is not None and asked > room:
        raise StartFailed(
            f"a KV cache of {_gib(asked)} was asked for, and {_gib(room)} are left of the memory that "
            f"{gpu.name} shares with the machine; lower --kv-cache-memory"
        )
    max_tokens = min(wanted, room // per_token) if asked is None else asked // per_token
    if max_tokens < wanted and asked is None:
        _logger.warning(
            "KV cache: %s tokens in %s, all that the memory allows; %d sequences of %s tokens would need %s "
            "tokens, so long ones will wait for each other",
            f"{max_tokens:,}",
            _gib(max_tokens * per_token),
            options.max_num_seqs,
            f"{max_model_len:,}",
            f"{wanted:,}",
        )
    return KvCacheBudget(max_tokens)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
