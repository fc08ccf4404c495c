"""Small random checkpoints of every layout, architecture and oddity that the CPU engine reads."""

from __future__ import annotations

import numpy as np

from tests.support.random_checkpoint import RandomCheckpoint

LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}

VARIANTS = {
    "mistral sliding window": RandomCheckpoint(sliding_window=9),
    "mistral plain bf16": RandomCheckpoint(layout="plain"),
    "mistral plain fp16": RandomCheckpoint(layout="plain", dtype=np.float16),
    "mistral plain fp32": RandomCheckpoint(layout="plain", dtype=np.float32),
    "mistral nvfp4": RandomCheckpoint(layout="nvfp4", num_shards=3),
    "mistral nvfp4, head quantised": RandomCheckpoint(layout="nvfp4", dense=()),
    "mistral nvfp4, unequal input scales": RandomCheckpoint(layout="nvfp4", unequal_scales=True),
    "mistral nvfp4 weight-only": RandomCheckpoint(layout="nvfp4", quantize_activations=False),
    "mistral mxfp4 weight-only": RandomCheckpoint(layout="mxfp4", quantize_activations=False),
    "mistral modelopt": RandomCheckpoint(layout="modelopt"),
    "mistral modelopt, attention dense": RandomCheckpoint(
        layout="modelopt", dense=("lm_head", "model.layers.*.self_attn*")
    ),
    "mistral one dense projection": RandomCheckpoint(dense=("lm_head", "model.layers.1.self_attn.k_proj")),
    "llama, rope llama3, tied": RandomCheckpoint(
        architecture="LlamaForCausalLM", rope=LLAMA3_ROPE, tie_word_embeddings=True
    ),
    "llama, rope linear, bias": RandomCheckpoint(
        architecture="LlamaForCausalLM",
        rope={"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
        attention_bias=True,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
    ),
    "mixtral mxfp4, hub names": RandomCheckpoint(architecture="MixtralForCausalLM", num_experts=5),
    "mixtral nvfp4, llm-compressor names": RandomCheckpoint(
        architecture="MixtralForCausalLM", layout="nvfp4", num_experts=4, hub_expert_names=False
    ),
    "mixtral modelopt, window, unequal scales": RandomCheckpoint(
        architecture="MixtralForCausalLM",
        layout="modelopt",
        num_experts=8,
        sliding_window=11,
        unequal_scales=True,
    ),
}
