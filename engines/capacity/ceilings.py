"""Ceilings on paper: what memory bandwidth and arithmetic allow, whichever ends first (the roofline).

Real engines reach a part of them: kernels are not perfect, layers wait for each other, and communication
between GPUs is not counted. Formulas: docs/capacity.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.capacity.devices import GPU_RUNTIME_BYTES, HOST_BYTES, KV_CACHE_SHARE, Device
from engines.capacity.model_cost import ModelCost

PREFILL_CHUNK = 8192
CPU_KV_CACHE_SHARE = 0.5  # what the CPU engine takes of the memory that its weights leave


@dataclass(frozen=True, slots=True)
class DecodeCeiling:
    """Tokens a second at most, all sequences together; `bound` is "bandwidth" or "arithmetic"."""

    num_sequences: int
    context: int
    tokens_per_second: float
    bound: str
    fits: bool


@dataclass(frozen=True, slots=True)
class PrefillCeiling:
    """Prompt tokens a second at most, and how long a prompt of that length takes at least."""

    num_tokens: int
    tokens_per_second: float
    seconds: float
    bound: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """One device (or several, sharing each layer). `num_sequences[i]` of `contexts[i]` tokens fit at once;
    all are 0 when the weights alone do not fit."""

    device: Device
    num_devices: int
    memory_bytes: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    num_kv_tokens: int
    contexts: tuple[int, ...]
    num_sequences: tuple[int, ...]
    decode: tuple[DecodeCeiling, ...]
    prefill: tuple[PrefillCeiling, ...]


def capacity(
    cost: ModelCost,
    device: Device,
    *,
    num_devices: int = 1,
    kv_cache_dtype: str = "bfloat16",
    contexts: Sequence[int],
    batch_sizes: Sequence[int],
) -> Capacity:
    """Everything `nybble plan` shows of one device."""
    # The CPU engine scales each row of its FP8 cache; on GPUs a scale is the whole tensor's.
    per_token = cost.kv_bytes_per_token(kv_cache_dtype, has_row_scales=device.sm is None)
    kv_cache = kv_cache_bytes(cost, device, num_devices)
    num_kv_tokens = kv_cache // per_token
    together = replace(
        device,
        bandwidth=device.bandwidth * num_devices,
        fp4_flops=device.fp4_flops * num_devices,
        bf16_flops=device.bf16_flops * num_devices,
    )
    return Capacity(
        device=device,
        num_devices=num_devices,
        memory_bytes=device.memory_bytes * num_devices,
        weight_bytes=cost.loaded_bytes,
        kv_cache_bytes=kv_cache,
        kv_bytes_per_token=per_token,
        num_kv_tokens=num_kv_tokens,
        contexts=tuple(contexts),
        num_sequences=tuple(num_kv_tokens // context for context in contexts),
        decode=tuple(
            decode_ceiling(cost, together, size, context, per_token, num_kv_tokens)
            for context in contexts
            for size in batch_sizes
        ),
        prefill=tuple(prefill_ceiling(cost, together, context, per_token) for context in contexts),
    )


def kv_cache_bytes(cost: ModelCost, device: Device, num_devices: int) -> int:
    """What is left for the KV cache on all devices together; 0 when the weights do not fit."""
    left = device.memory_bytes * num_devices - cost.loaded_bytes
    if device.sm is None:
        return max(0, int(left * CPU_KV_CACHE_SHARE))
    reserve = GPU_RUNTIME_BYTES + (HOST_BYTES if device.unified_memory else 0)
    return max(0, int((left - reserve * num_devices) * KV_CACHE_SHARE))


def decode_ceiling(
    cost: ModelCost, device: Device, num_sequences: int, context: int, kv_bytes: int, num_kv_tokens: int
) -> DecodeCeiling:
    """One step of `num_sequences` sequences, each `context` tokens long, yields one token of each."""
    read = (
        cost.always.num_bytes
        + cost.head.num_bytes
        + cost.experts.num_bytes * cost.touched_share(num_sequences)
        + num_sequences * context * kv_bytes
    )
    by_bandwidth = read / device.bandwidth
    by_arithmetic = _arithmetic_seconds(cost, device, num_sequences, num_sequences, num_sequences * context)
    return DecodeCeiling(
        num_sequences=num_sequences,
        context=context,
        tokens_per_second=num_sequences / max(by_bandwidth, by_arithmetic),
        bound="bandwidth" if by_bandwidth >= by_arithmetic else "arithmetic",
        fits=num_sequences * context <= num_kv_tokens,
    )


def prefill_ceiling(cost: ModelCost, device: Device, num_tokens: int, kv_bytes: int) -> PrefillCeiling:
    """A prompt of `num_tokens`, in steps of at most PREFILL_CHUNK; a token sees half the prompt on average.

    The head runs for the last token only. Each step reads the weights, and half the keys and values.
    """
    num_steps = -(-num_tokens // PREFILL_CHUNK)
    read = cost.head.num_bytes + num_steps * (
        cost.always.num_bytes
        + cost.experts.num_bytes * cost.touched_share(min(num_tokens, PREFILL_CHUNK))
        + num_tokens * kv_bytes / 2
    )
    by_bandwidth = read / device.bandwidth
    by_arithmetic = _arithmetic_seconds(cost, device, num_tokens, 1, num_tokens * num_tokens / 2)
    seconds = max(by_bandwidth, by_arithmetic)
    return PrefillCeiling(
        num_tokens=num_tokens,
        tokens_per_second=num_tokens / seconds,
        seconds=seconds,
        bound="bandwidth" if by_bandwidth >= by_arithmetic else "arithmetic",
    )


def _arithmetic_seconds(
    cost: ModelCost, device: Device, num_tokens: int, num_sampled: int, num_pairs: float
) -> float:
    """2 operations a weight and token; attention over `num_pairs` (token, earlier token) pairs."""
    fp4 = 2 * num_tokens * (cost.always.fp4_weights + cost.experts.fp4_weights * cost.used_share)
    fp4 += 2 * num_sampled * cost.head.fp4_weights
    other = 2 * num_tokens * (cost.always.other_weights + cost.experts.other_weights * cost.used_share)
    other += 2 * num_sampled * cost.head.other_weights
    attention = cost.attention_operations(1) * num_pairs
    return float(fp4 / device.fp4_flops + (other + attention) / device.bf16_flops)
