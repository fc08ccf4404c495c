"""The model shapes that are measured, as the config.json of their BF16 originals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Mistral or, with `num_experts` above 0, a Mixtral model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 32000
    num_experts: int = 0
    max_position_embeddings: int = 32768

    def config(self) -> dict[str, Any]:
        """The contents of config.json, without a quantization_config."""
        is_moe = self.num_experts > 0
        config: dict[str, Any] = {
            "architectures": ["MixtralForCausalLM" if is_moe else "MistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "head_dim": self.hidden_size // self.num_heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "mixtral" if is_moe else "mistral",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if is_moe:
            config |= {"num_local_experts": self.num_experts, "num_experts_per_tok": 2}
        return config


SHAPES = {
    "tiny": Shape(64, 192, 2, 4, 2, vocab_size=512, max_position_embeddings=2048),
    "tiny-moe": Shape(64, 96, 2, 4, 2, vocab_size=512, num_experts=4, max_position_embeddings=2048),
    "0.2b": Shape(1024, 3584, 12, 16, 4),
    "1b": Shape(2048, 7168, 16, 32, 8),
    "7b": Shape(4096, 14336, 32, 32, 8),
    "moe": Shape(1024, 3584, 8, 16, 4, num_experts=8),
}
