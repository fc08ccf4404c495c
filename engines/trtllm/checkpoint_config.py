"""config.json of TensorRT-LLM's checkpoint: only keys that every release from 1.0 to 1.2.x accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.checkpoint.model_config import ModelConfig
from engines.trtllm.errors import BuildRefused

GPUS_PER_NODE = 8
_ALWAYS_EXCLUDED = ("*lm_head", "*router", "*vocab_embedding")
_RENORMALIZE = 1  # Mixtral: softmax over the chosen experts


def checkpoint_config(
    config: ModelConfig, *, tensor_parallel: int, kv_cache_dtype: str, exclude: Sequence[str]
) -> dict[str, Any]:
    """The object for one config.json, which all ranks share. `exclude` names unquantised target modules.

    Raises BuildRefused for a model whose numbers this format cannot carry.
    """
    if config.rope.kind != "default":
        raise BuildRefused(
            f"rope scaling {config.rope.kind!r} is not known to work in TensorRT-LLM's checkpoint; "
            "use the PyTorch path (--path pytorch)"
        )
    document: dict[str, Any] = {
        "architecture": config.architecture,
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_size": config.head_dim,
        # A dense layer gates itself; a mixture of experts has to be told to.
        "hidden_act": "swiglu" if config.num_experts else "silu",
        "norm_epsilon": config.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config.max_position_embeddings,
        "rotary_base": float(config.rope.theta),
        "rotary_scaling": None,
        "attn_bias": False,
        "mlp_bias": False,
        "residual_mlp": False,
        "qk_layernorm": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": False,
    }
    if config.num_experts:
        document["moe"] = {
            "num_experts": config.num_experts,
            "top_k": config.num_experts_per_token,
            "normalization_mode": _RENORMALIZE,
            "tp_mode": 0,
        }
    document["mapping"] = {
        "world_size": tensor_parallel,
        "gpus_per_node": GPUS_PER_NODE,
        "cp_size": 1,
        "tp_size": tensor_parallel,
        "pp_size": 1,
        "moe_tp_size": tensor_parallel,
        "moe_ep_size": 1,
    }
    document["quantization"] = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8" if kv_cache_dtype == "fp8" else None,
        "group_size": 16,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": [*_ALWAYS_EXCLUDED, *exclude],
    }
    return document
