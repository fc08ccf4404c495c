"""A BF16 Mistral of any size with random weights, written fast: one block of noise, repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors
from engines.fp4 import bfloat16

SHAPES = {
    "0.2b": {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 12, "heads": (16, 4)},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "heads": (32, 8)},
}
_NOISE_ELEMENTS = 1 << 22


def make_random_model(directory: Path, shape: str) -> int:
    """Write config.json and the weights; returns the number of parameters in linear layers of the decoder."""
    sizes = SHAPES[shape]
    hidden, intermediate = int(sizes["hidden_size"]), int(sizes["intermediate_size"])
    heads, kv_heads = sizes["heads"]
    head_dim, vocab = hidden // heads, 32000
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": sizes["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "rope_theta": 1e6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }
    specs = [TensorSpec("model.embed_tokens.weight", "BF16", (vocab, hidden))]
    num_parameters = 0
    for layer in range(int(sizes["num_hidden_layers"])):
        prefix = f"model.layers.{layer}"
        linear = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        num_parameters += sum(rows * columns for rows, columns in linear.values())
        specs += [TensorSpec(f"{prefix}.{name}.weight", "BF16", size) for name, size in linear.items()]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            specs.append(TensorSpec(f"{prefix}.{norm}.weight", "BF16", (hidden,)))
    specs.append(TensorSpec("model.norm.weight", "BF16", (hidden,)))
    specs.append(TensorSpec("lm_head.weight", "BF16", (vocab, hidden)))
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    stream_safetensors(directory / "model.safetensors", specs, _noise(specs), {"format": "pt"})
    return num_parameters


def _noise(specs: list[TensorSpec]) -> Iterator[bytes]:
    random = np.random.default_rng(0)
    block = bfloat16.encode(random.normal(0, 0.02, _NOISE_ELEMENTS).astype(np.float32)).tobytes()
    for spec in specs:
        repeats = -(-spec.num_bytes // len(block))
        yield (block * repeats)[: spec.num_bytes]
