"""The CPU engine against an independent NumPy forward, on what no golden checkpoint covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.core_logits import all_logits
from tests.support.golden import read_reference
from tests.support.plain_forward import PlainModel
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


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("activations", ["checkpoint", "bf16"])
def test_reference_numerics_equal_the_plain_forward(tmp_path: Path, name: str, activations: str) -> None:
    variant = VARIANTS[name]
    directory = variant.write(tmp_path / "model")
    token_ids = np.random.default_rng(7).integers(0, variant.vocab_size, 40).tolist()
    quantize = activations == "checkpoint" and variant.quantize_activations
    expected = PlainModel(directory, quantize).logits(token_ids)
    logits = all_logits(directory, token_ids, activations=activations, numerics="reference", chunk=16)
    # Rounding noise can push an activation over an FP4 boundary; one such flip moves a few rows, no more.
    close = np.abs(logits - expected).max(axis=-1) < 2e-3
    assert close.mean() >= (0.9 if quantize else 1.0)


@pytest.mark.parametrize("name", ["mistral-mxfp4-ct", "mixtral-nvfp4-modelopt"])
def test_the_plain_forward_itself_matches_the_golden_logits(golden: Path, name: str) -> None:
    reference = read_reference(golden / name)
    logits = PlainModel(golden / name).logits(reference["input_ids"][0].tolist())
    stable = reference["jitter_maxdiff_f32"] < 1e-3
    assert np.abs(logits - reference["logits_w4a4_f32"][0]).max(axis=-1)[stable].max() < 1e-3
