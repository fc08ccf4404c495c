"""The memory of one GPU on paper: weights, activations, runtime, and what is left for the KV cache.

On unified memory (GB10) the GPU's memory is the machine's: the operating system and this service are
subtracted from the same total, and nothing is counted a second time as host memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.capacity.devices import GPU_RUNTIME_BYTES, HOST_BYTES, Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.tensors import Fp4Tensors
from engines.trtllm.errors import BuildRefused
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_guard import FREE_GPU_MEMORY_FRACTION
from engines.trtllm.model_facts import facts_of

_GIB = 1024**3
_LIVE_COPIES = 2  # of a layer's intermediate results: the one read and the one written


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes on each GPU. `num_kv_tokens` fit the KV cache, of which a sequence of full length takes
    `max_seq_len`. `host_bytes` is 0 unless memory is unified."""

    total_bytes: int
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    host_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    free_gpu_memory_fraction: float

    @property
    def num_kv_tokens(self) -> int:
        return self.kv_cache_bytes // self.kv_bytes_per_token


def memory_budget(checkpoint: Checkpoint, device: Device, options: BuildOptions) -> MemoryBudget:
    """The budget. Raises BuildRefused when not one sequence of full length fits."""
    weights = weight_bytes(checkpoint, options.tensor_parallel)
    activations = activation_bytes(checkpoint.config, options)
    host = HOST_BYTES if device.unified_memory else 0
    per_token = facts_of(checkpoint.directory, checkpoint.config).kv_bytes_per_token(
        options.kv_cache_dtype, options.tensor_parallel
    )
    left = device.memory_bytes - weights - activations - GPU_RUNTIME_BYTES - host
    # What the runtime will call free once the model is loaded still holds the host's part on unified memory.
    fraction = FREE_GPU_MEMORY_FRACTION
    if left > 0:
        fraction = min(fraction, int(100 * left / (left + host)) / 100)
    kv_cache = int((left + host) * fraction) if left > 0 else left
    needed = per_token * options.max_seq_len
    if kv_cache < needed:
        raise BuildRefused(
            f"{device.title}: {_gib(device.memory_bytes)} hold weights {_gib(weights)}, activations "
            f"{_gib(activations)}, runtime {_gib(GPU_RUNTIME_BYTES)}"
            f"{f', operating system and service {_gib(host)}' if host else ''}, and one sequence of "
            f"{options.max_seq_len:,} tokens needs {_gib(needed)} of KV cache; "
            f"{_gib(max(kv_cache, 0))} are left. Lower --max-seq-len or --max-num-tokens, "
            "use --kv-cache-dtype fp8, or raise --tensor-parallel"
        )
    return MemoryBudget(
        total_bytes=device.memory_bytes,
        weight_bytes=weights,
        activation_bytes=activations,
        runtime_bytes=GPU_RUNTIME_BYTES,
        host_bytes=host,
        kv_cache_bytes=kv_cache,
        kv_bytes_per_token=per_token,
        free_gpu_memory_fraction=fraction,
    )


def weight_bytes(checkpoint: Checkpoint, tensor_parallel: int) -> int:
    """Bytes of the weights on one of `tensor_parallel` GPUs, FP4 ones as NVFP4 (a scale byte for 16 codes).

    Linear layers and the head are shared out; embedding, norms and routers lie whole on each GPU.
    """
    total = 0
    shared_names = {"lm_head"}
    for module in checkpoint.modules():
        if isinstance(module, Fp4Tensors):
            num_weights = module.num_rows * module.num_columns
            total += -(-(num_weights // 2 + num_weights // 16) // tensor_parallel)
        elif module.name in shared_names or module.name.endswith("_proj") or ".experts." in module.name:
            total += -(-module.data.nbytes // tensor_parallel)
        else:
            total += module.data.nbytes
    return total


def activation_bytes(config: ModelConfig, options: BuildOptions) -> int:
    """The largest intermediate results of one step, in bfloat16, and the logits in float32; an estimate."""
    share = options.tensor_parallel
    attention = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim // share
    experts = max(config.num_experts_per_token, 1)
    feed_forward = 3 * config.intermediate_size * experts // share
    widest = 2 * config.hidden_size * experts + max(attention, feed_forward)
    per_token = _LIVE_COPIES * 2 * widest
    # With log-probabilities of prompts there is a row of logits for every token, not for every sequence.
    num_rows = options.max_num_tokens if options.logprobs == "all" else options.max_batch_size
    return options.max_num_tokens * per_token + num_rows * config.vocab_size * 4


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
