"""The arguments of LLM(...) and their nested configurations: pydantic models that forbid the unknown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from tests.support.fake_tensorrt_llm.releases import Release

_TORCH = (
    "cuda_graph_config",
    "moe_config",
    "nvfp4_gemm_config",
    "enable_iter_perf_stats",
    "disable_overlap_scheduler",
    "print_iter_log",
    "stream_interval",
    "enable_autotuner",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def config_classes(release: Release) -> dict[str, type[BaseModel]]:
    """KvCacheConfig and the like, by name."""
    kv_cache: dict[str, Any] = {
        "enable_block_reuse": (bool, True),
        "max_tokens": (int | None, None),
        "max_attention_window": (list[int] | None, None),
        "free_gpu_memory_fraction": (float | None, 0.9),
        "host_cache_size": (int | None, None),
        "event_buffer_max_size": (int, 0),
        "enable_partial_reuse": (bool, True),
        "copy_on_partial_reuse": (bool, True),
        "dtype": (str, "auto"),
    }
    if release.version.release[:2] == (1, 0):
        kv_cache["onboard_blocks"] = (bool, True)
        del kv_cache["dtype"]
    else:
        kv_cache["tokens_per_block"] = (int, 32)
    classes = {
        "KvCacheConfig": _model("KvCacheConfig", kv_cache),
        "CudaGraphConfig": _model(
            "CudaGraphConfig",
            {
                "batch_sizes": (list[int] | None, None),
                "max_batch_size": (int, 0),
                "enable_padding": (bool, False),
            },
        ),
        "MoeConfig": _model(
            "MoeConfig",
            {
                "backend": (str, "AUTO" if release.is_new else "CUTLASS"),
                "max_num_tokens": (int | None, None),
                "load_balancer": (Any, None),
            },
        ),
    }
    if release.is_since_1_2:
        classes["Nvfp4GemmConfig"] = _model("Nvfp4GemmConfig", {"allowed_backends": (list[str], ["cutlass"])})
    classes["TorchLlmArgs"] = _model("TorchLlmArgs", _llm_arguments(release, classes))
    if not release.is_new:
        common = {
            name: field for name, field in _llm_arguments(release, classes).items() if name not in _TORCH
        }
        classes["TrtLlmArgs"] = _model("TrtLlmArgs", common)
    return classes


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    return create_model(name, __base__=_Strict, **fields)


def _llm_arguments(release: Release, classes: dict[str, type[BaseModel]]) -> dict[str, Any]:
    """Section 2.5, with the types of those that the engine sets."""
    typed: dict[str, Any] = {
        "model": (str, ...),
        "tokenizer": (Any, None),
        "tokenizer_mode": (str, "auto"),
        "skip_tokenizer_init": (bool, False),
        "trust_remote_code": (bool, False),
        "tensor_parallel_size": (int, 1),
        "dtype": (str, "auto"),
        "revision": (str | None, None),
        "tokenizer_revision": (str | None, None),
        "gpus_per_node": (int | None, None),
        "kv_cache_config": (classes["KvCacheConfig"], classes["KvCacheConfig"]()),
        "cuda_graph_config": (classes["CudaGraphConfig"] | None, None),
        "moe_config": (classes["MoeConfig"], classes["MoeConfig"]()),
        "enable_chunked_prefill": (bool, False),
        "guided_decoding_backend": (Literal["xgrammar", "llguidance"] | None, None),
        "gather_generation_logits": (bool, False),
        "max_batch_size": (int, 2048),
        "max_input_len": (int, 1024),
        "max_seq_len": (int | None, None),
        "max_beam_width": (int, 1),
        "max_num_tokens": (int, 8192),
        "enable_iter_perf_stats": (bool, False),
        "disable_overlap_scheduler": (bool, False),
        "print_iter_log": (bool, False),
        "stream_interval": (int, 1),
        "enable_autotuner": (bool, True),
        "load_format": (str, "auto"),
        "pipeline_parallel_size": (int, 1),
        "moe_expert_parallel_size": (int | None, None),
        "scheduler_config": (Any, None),
        "backend": (str | None, None),
    }
    if release.is_since_1_2:
        typed["nvfp4_gemm_config"] = (classes["Nvfp4GemmConfig"], classes["Nvfp4GemmConfig"]())
    if release.is_new:
        typed["telemetry_config"] = (Any, None)
        typed["env_overrides"] = (Any, None)
    return typed
