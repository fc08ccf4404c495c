"""The modules each supported architecture is made of: names, shapes, biases. Knows no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from engines.checkpoint.model_config import ModelConfig

EXPERT_PARTS = ("gate", "up", "down")
_HUB_NAMES = {
    "gate": "w1",
    "up": "w3",
    "down": "w2",
}  # Mixtral's own names (fp4-formats section 6)
_MOE_PREFIXES = ("block_sparse_moe", "mlp")


class ModuleKind(Enum):
    """What a module may be stored as."""

    LINEAR = "linear"  # FP4 or dense
    ROUTER = "router"  # dense, whatever the quantisation config targets
    DENSE = "dense"  # norms and embeddings


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One module and the `shape` of its weight. `names`: its spellings, one of which a checkpoint has."""

    names: tuple[str, ...]
    kind: ModuleKind
    shape: tuple[int, ...]
    has_bias: bool = False


def expert_names(layer: int, expert: int, part: str) -> tuple[str, ...]:
    """All spellings of one expert's projection; `part` is "gate", "up" or "down"."""
    return tuple(
        f"model.layers.{layer}.{prefix}.experts.{expert}.{name}"
        for prefix in _MOE_PREFIXES
        for name in (_HUB_NAMES[part], f"{part}_proj")
    )


def router_names(layer: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{layer}.{prefix}.gate" for prefix in _MOE_PREFIXES)


def module_specs(config: ModelConfig) -> Iterator[ModuleSpec]:
    """Every module the model needs, one at a time, so that a hostile size costs nothing."""
    hidden, vocab = config.hidden_size, config.vocab_size
    yield ModuleSpec(("model.embed_tokens",), ModuleKind.DENSE, (vocab, hidden))
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield ModuleSpec((f"{prefix}.input_layernorm",), ModuleKind.DENSE, (hidden,))
        yield from _attention(config, f"{prefix}.self_attn")
        yield ModuleSpec((f"{prefix}.post_attention_layernorm",), ModuleKind.DENSE, (hidden,))
        yield from _experts(config, layer) if config.num_experts else _mlp(config, f"{prefix}.mlp")
    yield ModuleSpec(("model.norm",), ModuleKind.DENSE, (hidden,))
    if not config.tie_word_embeddings:
        yield ModuleSpec(("lm_head",), ModuleKind.LINEAR, (vocab, hidden))


def _attention(config: ModelConfig, prefix: str) -> Iterator[ModuleSpec]:
    query = config.num_heads * config.head_dim
    key_value = config.num_kv_heads * config.head_dim
    shapes = {
        "q_proj": (query, config.hidden_size),
        "k_proj": (key_value, config.hidden_size),
        "v_proj": (key_value, config.hidden_size),
        "o_proj": (config.hidden_size, query),
    }
    for name, shape in shapes.items():
        yield ModuleSpec((f"{prefix}.{name}",), ModuleKind.LINEAR, shape, config.attention_bias)


def _mlp(config: ModelConfig, prefix: str) -> Iterator[ModuleSpec]:
    for part in EXPERT_PARTS:
        shape = _projection_shape(config, part)
        yield ModuleSpec((f"{prefix}.{part}_proj",), ModuleKind.LINEAR, shape, config.mlp_bias)


def _experts(config: ModelConfig, layer: int) -> Iterator[ModuleSpec]:
    yield ModuleSpec(router_names(layer), ModuleKind.ROUTER, (config.num_experts, config.hidden_size))
    for expert in range(config.num_experts):
        for part in EXPERT_PARTS:
            names = expert_names(layer, expert, part)
            yield ModuleSpec(names, ModuleKind.LINEAR, _projection_shape(config, part))


def _projection_shape(config: ModelConfig, part: str) -> tuple[int, int]:
    if part == "down":
        return config.hidden_size, config.intermediate_size
    return config.intermediate_size, config.hidden_size
