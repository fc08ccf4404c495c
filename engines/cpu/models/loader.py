"""From an open checkpoint to a runnable decoder: every packed tensor is repacked once, for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu.linear import Linear, LinearOptions, build_linear
from engines.cpu.models.attention import Attention, RopeTables
from engines.cpu.models.decoder import Decoder
from engines.cpu.models.layer import DecoderLayer
from engines.cpu.models.mlp import FeedForward, GatedMlp, MixtureOfExperts
from engines.cpu.rope import rope_tables

LinearBuilder = Callable[[Sequence[Fp4Tensors | DenseTensors], LinearOptions], Linear]
"""Makes the one linear layer of modules that read the same input; `build_linear` unless something watches."""


class ModuleSource(Protocol):
    """What a layer is built from: a `Checkpoint`, or one with some modules replaced."""

    @property
    def config(self) -> ModelConfig: ...

    def linear(self, name: str) -> Fp4Tensors | DenseTensors: ...

    def expert(self, layer: int, expert: int, part: str) -> Fp4Tensors | DenseTensors: ...

    def router(self, layer: int) -> DenseTensors: ...

    def dense(self, name: str) -> DenseTensors: ...


def load_decoder(
    checkpoint: Checkpoint,
    options: LinearOptions,
    max_model_len: int,
    build: LinearBuilder = build_linear,
    *,
    screens_head: bool = False,
) -> Decoder:
    """Build the model of `checkpoint` for sequences of up to `max_model_len` tokens.

    `build` makes every linear layer; calibration passes one whose layers record what they read.
    `screens_head` as in `Decoder`.
    Raises MalformedCheckpoint when `options` need something that the files lack (an input scale, say).
    """
    config = checkpoint.config
    rope = RopeTables(*rope_tables(config.rope, config.head_dim, max_model_len))
    layers = []
    for layer in range(config.num_layers):
        layers.append(load_layer(checkpoint, layer, rope, options, build, cache_layer=layer))
        # The repacked copy takes the place of the file's, in memory too.
        checkpoint.tensors.release_pages()
    embedding = checkpoint.dense("model.embed_tokens")
    head = build([checkpoint.linear("lm_head")], options)
    final_norm = checkpoint.dense("model.norm").as_float32()
    checkpoint.tensors.release_pages()
    return Decoder(embedding.data, layers, final_norm, head, config.rms_norm_eps, screens_head=screens_head)


def load_layer(
    checkpoint: ModuleSource,
    layer: int,
    rope: RopeTables,
    options: LinearOptions,
    build: LinearBuilder,
    *,
    cache_layer: int,
) -> DecoderLayer:
    """One layer by itself; `cache_layer` is its place in the KV cache it will run over. Raises as above."""
    prefix = f"model.layers.{layer}"
    attention_modules = [checkpoint.linear(f"{prefix}.self_attn.{name}_proj") for name in ("q", "k", "v")]
    attention = Attention(
        checkpoint.config,
        cache_layer,
        build(attention_modules, options),
        build([checkpoint.linear(f"{prefix}.self_attn.o_proj")], options),
        rope,
    )
    return DecoderLayer(
        input_norm=checkpoint.dense(f"{prefix}.input_layernorm").as_float32(),
        attention=attention,
        post_attention_norm=checkpoint.dense(f"{prefix}.post_attention_layernorm").as_float32(),
        feed_forward=_load_feed_forward(checkpoint, layer, options, build),
    )


def _load_feed_forward(
    checkpoint: ModuleSource, layer: int, options: LinearOptions, build: LinearBuilder
) -> FeedForward:
    config = checkpoint.config
    if config.num_experts == 0:
        gate, up, down = (
            checkpoint.linear(f"model.layers.{layer}.mlp.{name}_proj") for name in ("gate", "up", "down")
        )
        return GatedMlp(build([gate, up], options), build([down], options))
    experts = []
    for expert in range(config.num_experts):
        gate, up, down = (checkpoint.expert(layer, expert, role) for role in ("gate", "up", "down"))
        experts.append(GatedMlp(build([gate, up], options), build([down], options)))
    router = build([checkpoint.router(layer)], options)
    return MixtureOfExperts(router, experts, config.num_experts_per_token)
