"""What the user should know of a planned build: what changes, what is untried, what will wait."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_budget import MemoryBudget

_FAST_EXPERTS_ON_GB10 = Version("1.3.0rc13")


def build_notes(
    checkpoint: Checkpoint,
    device: Device,
    version: Version,
    path: str,
    options: BuildOptions,
    budget: MemoryBudget,
    llm_options: dict[str, Any],
) -> tuple[str, ...]:
    """Every note that applies, the most important first."""
    return (
        *_about_the_model(checkpoint, options),
        *_about_the_device(checkpoint, device, version, path, budget, llm_options),
        *_about_the_limits(path, options, budget),
    )


def _about_the_model(checkpoint: Checkpoint, options: BuildOptions) -> list[str]:
    notes = []
    config, quantization = checkpoint.config, checkpoint.quantization
    if checkpoint.layout in (Layout.COMPRESSED_TENSORS_MXFP4, Layout.COMPRESSED_TENSORS_MIXED):
        notes.append(
            "weights stay bit-equal; activations change from MXFP4 (blocks of 32, power-of-two scales) to "
            "NVFP4 (blocks of 16, E4M3 scales under a calibrated scale), so logits are near the source's, "
            "not equal: judge them with `nybble compare`"
        )
    if not config.num_experts and checkpoint.layout is not Layout.PLAIN:
        notes.append(f"{config.architecture} in NVFP4 is not in NVIDIA's tested matrix: check its accuracy")
    if options.kv_cache_dtype == "fp8" and quantization and quantization.kv_cache is None:
        notes.append("the checkpoint has no KV cache scales; FP8 will use a scale of 1")
    return notes


def _about_the_device(
    checkpoint: Checkpoint,
    device: Device,
    version: Version,
    path: str,
    budget: MemoryBudget,
    llm_options: dict[str, Any],
) -> list[str]:
    notes = []
    if path == "engine" and device.name == "gb10":
        notes.append("no report of a Mistral or Mixtral NVFP4 engine on a GB10 is known")
    if device.unified_memory:
        notes.append(
            "memory is shared with the operating system and counted once; before a build or a start, drop "
            "the page cache (sync; echo 3 > /proc/sys/vm/drop_caches)"
        )
    if path == "engine" and device.unified_memory and 3 * budget.weight_bytes > device.memory_bytes:
        notes.append("trtllm-build holds the weights up to three times; it may run out of this memory")
    if checkpoint.config.num_experts and device.name == "gb10" and version < _FAST_EXPERTS_ON_GB10:
        notes.append(
            f"NVFP4 experts are slow on GB10 before {_FAST_EXPERTS_ON_GB10}; {version} may have the old "
            "kernels"
        )
    if "nvfp4_gemm_config" in llm_options:
        notes.append(
            "cuBLASLt is forced for dense FP4, because CUTLASS overflowed shared memory before 1.3.0rc13"
        )
    return notes


def _about_the_limits(path: str, options: BuildOptions, budget: MemoryBudget) -> list[str]:
    notes = []
    if path == "engine" and options.logprobs == "none":
        notes.append(
            "the engine will give no log-probabilities; --logprobs generated (or all, with the prompt's) "
            "has it keep the logits they are made from"
        )
    if options.logprobs == "all":
        notes.append(
            "the logits of whole prompts are kept: they cost memory and time in proportion to prompt length"
        )
    num_full = budget.num_kv_tokens // options.max_seq_len
    if num_full < options.max_batch_size:
        notes.append(
            f"the KV cache holds {num_full:,} sequences of full length, fewer than --max-batch-size "
            f"{options.max_batch_size}; longer ones will wait"
        )
    return notes
