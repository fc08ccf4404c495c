"""A checkpoint as a GGUF file for llama.cpp, written tensor by tensor: no more than one is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bench.peers.conversion.gguf_blocks import (
    Module,
    dense_float32,
    mxfp4_blocks,
    nvfp4_blocks,
    paired_halves,
    q4_0_blocks,
    q8_0_blocks,
)
from engines.bench.peers.system import PeerUnavailable
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors

WEIGHT_TYPES = ("mxfp4", "nvfp4", "q4_0", "q8_0")
_BYTES_OF_BLOCK = {"mxfp4": (32, 17), "nvfp4": (64, 36), "q4_0": (32, 18), "q8_0": (32, 34)}
_BLOCKS: dict[str, Callable[[Module], NDArray[np.uint8]]] = {
    "mxfp4": mxfp4_blocks,
    "nvfp4": lambda module: nvfp4_blocks(module)[0],
    "q4_0": q4_0_blocks,
    "q8_0": q8_0_blocks,
}
_ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
_FEED_FORWARD = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to be written; `type` "f32" or one of WEIGHT_TYPES, `shape` in elements, rows first."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: Callable[[], NDArray[Any]]

    @property
    def byte_shape(self) -> tuple[int, ...]:
        if self.type == "f32":
            return (*self.shape[:-1], 4 * self.shape[-1])
        elements, num_bytes = _BYTES_OF_BLOCK[self.type]
        if self.shape[-1] % elements:
            raise PeerUnavailable(
                f"{self.name} has {self.shape[-1]} columns; GGUF's {self.type} needs a multiple of {elements}"
            )
        return (*self.shape[:-1], self.shape[-1] // elements * num_bytes)


def write_gguf(checkpoint: Checkpoint, path: Path, weight_type: str) -> None:
    """Write linear layers as `weight_type`, embedding and head as Q8_0, norms and router as float32.

    Without a tokenizer: token ids go in and logits come out. Raises PeerUnavailable without the package
    `gguf`, and for what the format or llama.cpp's "llama" architecture cannot hold.
    """
    try:
        import gguf
    except ImportError as error:
        raise PeerUnavailable(
            f"writing GGUF needs a package that is not installed ({error}): pip install 'nybble[peers]'"
        ) from error
    _check(checkpoint.config)
    tensors = list(_tensors(checkpoint, weight_type))
    aside = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(aside, "llama")
    _add_sizes(writer, checkpoint.config)
    for tensor in tensors:
        shape = tensor.byte_shape
        kind = gguf.GGMLQuantizationType[tensor.type.upper()]
        if tensor.type == "f32":
            num_bytes = int(np.prod(shape))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes, kind)
        else:
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(tensor.data()))
    writer.close()
    aside.replace(path)


def _check(config: ModelConfig) -> None:
    if config.rope.kind != "default":
        raise PeerUnavailable(f"rotary positions of kind {config.rope.kind!r} are not written to GGUF")
    if config.mlp_bias:
        raise PeerUnavailable("llama.cpp's llama architecture has no biases in the feed-forward layers")


def _add_sizes(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_token)
    writer.add_tokenizer_model("none")


def _tensors(checkpoint: Checkpoint, weight_type: str) -> Iterator[_Tensor]:
    config = checkpoint.config
    yield _linear("token_embd", [checkpoint.dense("model.embed_tokens")], "q8_0")
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        yield _float32(f"{target}.attn_norm.weight", checkpoint.dense(f"{source}.input_layernorm"))
        yield _float32(f"{target}.ffn_norm.weight", checkpoint.dense(f"{source}.post_attention_layernorm"))
        for part, name in _ATTENTION.items():
            module = checkpoint.linear(f"{source}.self_attn.{part}")
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(part, 0)
            yield from _layer_linear(f"{target}.{name}", [module], weight_type, heads)
        if config.num_experts == 0:
            for part, name in _FEED_FORWARD.items():
                module = checkpoint.linear(f"{source}.mlp.{part}_proj")
                yield from _layer_linear(f"{target}.{name}", [module], weight_type)
            continue
        yield _float32(f"{target}.ffn_gate_inp.weight", checkpoint.router(layer))
        for part, name in _FEED_FORWARD.items():
            experts = [checkpoint.expert(layer, expert, part) for expert in range(config.num_experts)]
            yield from _layer_linear(f"{target}.{name}_exps", experts, weight_type)
    yield _float32("output_norm.weight", checkpoint.dense("model.norm"))
    yield _linear("output", [checkpoint.linear("lm_head")], "q8_0")


def _layer_linear(
    name: str, modules: list[Module], weight_type: str, num_rotated_heads: int = 0
) -> Iterator[_Tensor]:
    """The weight (of all experts, if there are several), its scale if the type has one, its bias."""
    yield _linear(name, modules, weight_type, num_rotated_heads)
    if weight_type == "nvfp4":
        yield _Tensor(f"{name}.scale", "f32", (len(modules),), lambda: _scales(modules))
    bias = modules[0].bias
    if bias is not None:
        rotated = bias if num_rotated_heads == 0 else _rotated_bias(bias, num_rotated_heads)
        yield _Tensor(f"{name}.bias", "f32", bias.shape, lambda: rotated)


def _linear(name: str, modules: list[Module], weight_type: str, num_rotated_heads: int = 0) -> _Tensor:
    def data() -> NDArray[np.uint8]:
        parts = [_BLOCKS[weight_type](module) for module in modules]
        if num_rotated_heads:
            parts = [paired_halves(part, num_rotated_heads) for part in parts]
        return parts[0] if len(parts) == 1 else np.stack(parts)

    shape = _shape(modules[0])
    return _Tensor(
        f"{name}.weight", weight_type, shape if len(modules) == 1 else (len(modules), *shape), data
    )


def _float32(name: str, module: DenseTensors) -> _Tensor:
    return _Tensor(name, "f32", module.shape, lambda: dense_float32(module))


def _scales(modules: list[Module]) -> NDArray[np.float32]:
    return np.array([nvfp4_blocks(module)[1] for module in modules], np.float32)


def _rotated_bias(bias: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    bits = paired_halves(bias.view(np.uint8).reshape(bias.size, 4), num_heads)
    return bits.view(np.float32).reshape(bias.shape)


def _shape(module: Module) -> tuple[int, ...]:
    return (module.num_rows, module.num_columns) if isinstance(module, Fp4Tensors) else module.shape
