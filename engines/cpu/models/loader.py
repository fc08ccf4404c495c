"""From an open checkpoint to a runnable decoder: every packed tensor is repacked once, for the kernels."""

from __future__ import annotations

from engines.checkpoint.checkpoint import Checkpoint
from engines.cpu.linear import LinearOptions, build_linear
from engines.cpu.models.attention import Attention, RopeTables
from engines.cpu.models.decoder import Decoder, DecoderLayer
from engines.cpu.models.mlp import FeedForward, GatedMlp, MixtureOfExperts
from engines.cpu.rope import rope_tables


def load_decoder(checkpoint: Checkpoint, options: LinearOptions, max_model_len: int) -> Decoder:
    """Build the model of `checkpoint` for sequences of up to `max_model_len` tokens.

    Raises MalformedCheckpoint when `options` need something that the files lack (an input scale, say).
    """
    config = checkpoint.config
    rope = RopeTables(*rope_tables(config.rope, config.head_dim, max_model_len))
    layers = [_load_layer(checkpoint, layer, rope, options) for layer in range(config.num_layers)]
    embedding = checkpoint.dense("model.embed_tokens")
    head = build_linear([checkpoint.linear("lm_head")], options)
    final_norm = checkpoint.dense("model.norm").as_float32()
    return Decoder(embedding.data, layers, final_norm, head, config.rms_norm_eps)


def _load_layer(checkpoint: Checkpoint, layer: int, rope: RopeTables, options: LinearOptions) -> DecoderLayer:
    prefix = f"model.layers.{layer}"
    attention_modules = [checkpoint.linear(f"{prefix}.self_attn.{name}_proj") for name in ("q", "k", "v")]
    attention = Attention(
        checkpoint.config,
        layer,
        build_linear(attention_modules, options),
        build_linear([checkpoint.linear(f"{prefix}.self_attn.o_proj")], options),
        rope,
    )
    return DecoderLayer(
        input_norm=checkpoint.dense(f"{prefix}.input_layernorm").as_float32(),
        attention=attention,
        post_attention_norm=checkpoint.dense(f"{prefix}.post_attention_layernorm").as_float32(),
        feed_forward=_load_feed_forward(checkpoint, layer, options),
    )


def _load_feed_forward(checkpoint: Checkpoint, layer: int, options: LinearOptions) -> FeedForward:
    config = checkpoint.config
    if config.num_experts == 0:
        gate, up, down = (
            checkpoint.linear(f"model.layers.{layer}.mlp.{name}_proj") for name in ("gate", "up", "down")
        )
        return GatedMlp(build_linear([gate, up], options), build_linear([down], options))
    experts = []
    for expert in range(config.num_experts):
        gate, up, down = (checkpoint.expert(layer, expert, role) for role in ("gate", "up", "down"))
        experts.append(GatedMlp(build_linear([gate, up], options), build_linear([down], options)))
    router = build_linear([checkpoint.router(layer)], options)
    return MixtureOfExperts(router, experts, config.num_experts_per_token)
