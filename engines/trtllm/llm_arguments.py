"""From our options to the keyword arguments of `tensorrt_llm.LLM`, as far as the release knows them.

Nested configurations are plain mappings until the last moment (`llm_arguments`), so that the same ones can
stand in the YAML file which trtllm-serve reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from engines.base import EngineOptions
from engines.errors import StartFailed
from engines.trtllm.memory_guard import UNIFIED_MEMORY_SMS, KvCacheBudget
from engines.trtllm.model_facts import ModelFacts
from engines.trtllm.runtime import Runtime

# Fewer tokens in a step leave a GPU waiting for memory; the default of EngineOptions is made for CPUs.
MIN_BATCHED_TOKENS = 2048
TOKENS_PER_BLOCK = 32
_SM_WITH_SMALL_SHARED_MEMORY = frozenset({120, 121})
# The CUTLASS FP4 kernels asked for more shared memory than SM 120 and 121 have until pull request 12141.
_FP4_GEMM_FIXED_IN = Version("1.3.0rc13")
# Options for trtllm-serve that are not for this engine: see engines.trtllm.guided_decoding.
_SET_ELSEWHERE = frozenset({"guided_decoding_backend"})
_CONFIG_CLASSES = {
    "kv_cache_config": "KvCacheConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "moe_config": "MoeConfig",
    "nvfp4_gemm_config": "Nvfp4GemmConfig",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_model_len` counts prompt and answer; `max_seq_len` is what the runtime is told, one more where the
    model allows it, because it generates a token even for a prompt that is only to be scored."""

    max_model_len: int
    max_seq_len: int
    max_num_tokens: int
    tokens_per_block: int


def limits_of(options: EngineOptions, facts: ModelFacts) -> Limits:
    """Check and complete what the user asked for. Raises StartFailed."""
    for name in (
        "max_num_seqs",
        "max_num_batched_tokens",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "block_size",
    ):
        number: int = getattr(options, name)
        if number < 1:
            raise StartFailed(f"{name} is {number}; expected at least 1")
    if not options.stall_timeout_seconds > 0:
        raise StartFailed(
            f"stall_timeout_seconds is {options.stall_timeout_seconds}; expected a positive number"
        )
    if options.activations != "checkpoint":
        raise StartFailed(
            f"activations is {options.activations!r}, but TensorRT-LLM quantises activations as the "
            "checkpoint declares; leave the option out, or serve with --engine cpu"
        )
    if facts.num_kv_heads % options.tensor_parallel_size:
        raise StartFailed(
            f"tensor_parallel_size is {options.tensor_parallel_size}; expected a divisor of the model's "
            f"{facts.num_kv_heads} KV heads"
        )
    if options.pipeline_parallel_size > facts.num_layers:
        raise StartFailed(
            f"pipeline_parallel_size is {options.pipeline_parallel_size}; expected at most the model's "
            f"{facts.num_layers} layers"
        )
    block_size = max(options.block_size, TOKENS_PER_BLOCK)
    if block_size & (block_size - 1):
        raise StartFailed(f"block_size is {options.block_size}; TensorRT-LLM expects a power of two")
    context = facts.max_position_embeddings
    max_model_len = context if options.max_model_len is None else options.max_model_len
    if not 2 <= max_model_len <= context:
        raise StartFailed(
            f"max_model_len is {max_model_len}; expected 2 to {context} (max_position_embeddings)"
        )
    return Limits(
        max_model_len=max_model_len,
        max_seq_len=min(max_model_len + 1, context),
        max_num_tokens=max(options.max_num_batched_tokens, options.max_num_seqs, MIN_BATCHED_TOKENS),
        tokens_per_block=block_size,
    )


def target_options(version: Version, sm: int, facts: ModelFacts, max_num_seqs: int) -> dict[str, Any]:
    """What the GPU wants, in the words of trtllm-serve's configuration file (reference section 4).

    GB10: no overlap scheduler (NVIDIA's playbook), padded CUDA graphs, the CUTLASS MoE kernels (no others run
    there), cuBLASLt for dense FP4 before the shared-memory fix.
    """
    options: dict[str, Any] = {
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": max_num_seqs},
    }
    if facts.is_mixture_of_experts:
        options["moe_config"] = {"backend": "CUTLASS"}
    if sm in UNIFIED_MEMORY_SMS:
        options["disable_overlap_scheduler"] = True
    if sm in _SM_WITH_SMALL_SHARED_MEMORY and version < _FP4_GEMM_FIXED_IN:
        options["nvfp4_gemm_config"] = {"allowed_backends": ["cublaslt"]}
    return options


def llm_arguments(
    options: EngineOptions,
    facts: ModelFacts,
    limits: Limits,
    budget: KvCacheBudget,
    kv_cache_dtype: str,
    target: Mapping[str, Any],
    runtime: Runtime,
) -> dict[str, Any]:
    """The keyword arguments of `LLM(...)`, without names that the release does not know.

    `target` comes from `target_options` or from the file that `nybble build` wrote. Raises StartFailed for an
    FP8 KV cache on a release that has no choice of it.
    """
    if kv_cache_dtype == "fp8" and not runtime.config_takes("KvCacheConfig", "dtype"):
        raise StartFailed(
            f"kv_cache_dtype is 'fp8', but TensorRT-LLM {runtime.features.version} cannot be told; install "
            "release 1.1 or newer, or leave the option out"
        )
    kv_cache = {
        **target.get("kv_cache_config", {}),
        "enable_block_reuse": options.prefix_caching,
        "free_gpu_memory_fraction": budget.free_gpu_memory_fraction,
        "max_tokens": budget.max_tokens,
        # The PyTorch backend takes "auto", "fp8" and "nvfp4" alone and refuses "bfloat16" while it loads;
        # "auto" is bfloat16 for a checkpoint that declares no other.
        "dtype": "auto" if kv_cache_dtype == "bfloat16" else kv_cache_dtype,
        "tokens_per_block": limits.tokens_per_block,
    }
    arguments: dict[str, Any] = {
        **{name: value for name, value in target.items() if name not in _SET_ELSEWHERE},
        # Text is none of the engine's business: token ids in, token ids out.
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "max_batch_size": options.max_num_seqs,
        "max_num_tokens": limits.max_num_tokens,
        "max_seq_len": limits.max_seq_len,
        "max_beam_width": 1,
        # Without it a prompt longer than max_num_tokens is refused.
        "enable_chunked_prefill": True,
        "enable_iter_perf_stats": True,
        "kv_cache_config": kv_cache,
    }
    known = {name: value for name, value in arguments.items() if runtime.accepts(name)}
    for name, class_name in _CONFIG_CLASSES.items():
        if name in known:
            known[name] = runtime.config(class_name, known[name])
            if known[name] is None:
                del known[name]
    return {"model": str(facts.directory), **known}


def tensorrt_engine_arguments(
    options: EngineOptions, facts: ModelFacts, limits: Limits, budget: KvCacheBudget, runtime: Runtime
) -> dict[str, Any]:
    """The keyword arguments of `tensorrt_llm._tensorrt_engine.LLM` for an engine made by trtllm-build.

    Batch, lengths and layout are in the engine; only what can still be chosen is given.
    """
    kv_cache = {
        "enable_block_reuse": options.prefix_caching,
        "free_gpu_memory_fraction": budget.free_gpu_memory_fraction,
        "max_tokens": budget.max_tokens,
    }
    return {
        "model": str(facts.directory),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_batch_size": options.max_num_seqs,
        "max_num_tokens": limits.max_num_tokens,
        "kv_cache_config": runtime.config("KvCacheConfig", kv_cache),
        # Log-probabilities are refused without it, although the engine gathers the logits.
        **({"gather_generation_logits": True} if runtime.features.logprobs else {}),
    }
