"""The two architectures in plain PyTorch, for training: Mistral, and Mixtral with its experts.

Parameters bear the names that the checkpoints on the Hub have, so that a state dict is a checkpoint. The
arithmetic is that of transformers' MistralForCausalLM and MixtralForCausalLM, to which
check_master.py compares it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo_model.tokenizer import BOS_ID, CONTEXT_SIZE, EOS_ID, VOCAB_SIZE

RMS_NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
BALANCE_WEIGHT = 0.02  # of the loss that keeps the experts equally busy


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; `num_experts` 0 is Mistral."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    num_experts: int = 0
    experts_per_token: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """The shape that `config_json` wrote into a config.json."""
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config.get("num_local_experts", 0),
            config.get("num_experts_per_tok", 2),
        )


SHAPES = {
    "mistral": Shape(256, 704, 6, 8, 4),
    "mixtral": Shape(192, 256, 4, 6, 2, num_experts=8),
}


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, RMS_NORM_EPS)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_size = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(rows, length, -1, self.shape.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        repeats = self.shape.num_heads // self.shape.num_key_value_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Expert(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.w2 = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self.w3 = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class SparseMoe(nn.Module):
    """Each token goes to its best experts, weighted by their renormalised router probabilities."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.gate = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(shape) for _ in range(shape.num_experts))
        self.balance = torch.zeros(())  # of the last forward pass; 1 when the experts are equally busy

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        probabilities = self.gate(flat).softmax(dim=-1)
        weights, chosen = probabilities.topk(self.shape.experts_per_token, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        busy = functional.one_hot(chosen, self.shape.num_experts).float().sum(dim=1).mean(dim=0)
        share = busy / self.shape.experts_per_token
        self.balance = (share * probabilities.mean(dim=0)).sum() * self.shape.num_experts
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            mixed = mixed.index_add(0, tokens, expert(flat[tokens]) * weights[tokens, place, None])
        return mixed.view_as(x)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size)
        if shape.num_experts:
            self.block_sparse_moe = SparseMoe(shape)
        else:
            self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        feed_forward = self.block_sparse_moe if self.shape_has_experts else self.mlp
        return x + feed_forward(self.post_attention_layernorm(x))

    @property
    def shape_has_experts(self) -> bool:
        return hasattr(self, "block_sparse_moe")


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size)


class LanguageModel(nn.Module):
    """Token ids and segments, int64 [rows, length] -> logits float32 [rows, length, VOCAB_SIZE]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.hidden_size, VOCAB_SIZE, bias=False)
        frequencies = ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2).double() / shape.head_dim)
        angles = torch.arange(CONTEXT_SIZE).double()[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                outputs_of_a_block = name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight"))
                deviation = 0.02 if "embed" in name or outputs_of_a_block else parameter.shape[1] ** -0.5 / 2
                nn.init.normal_(parameter, std=deviation)

    def forward(self, token_ids: Tensor, segments: Tensor) -> Tensor:
        length = token_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (segments[:, :, None] == segments[:, None, :]) & causal
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)[:, None]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits

    def balance_loss(self) -> Tensor:
        """0 for Mistral; for Mixtral, how unequally the experts were busy in the last forward pass."""
        losses = [layer.block_sparse_moe.balance for layer in self.model.layers if layer.shape_has_experts]
        return BALANCE_WEIGHT * torch.stack(losses).mean() if losses else torch.zeros(())


def config_json(shape: Shape) -> dict[str, Any]:
    """The contents of config.json for the unquantized model."""
    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if shape.num_experts else "MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "bfloat16",
        "eos_token_id": EOS_ID,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": CONTEXT_SIZE,
        "model_type": "mixtral" if shape.num_experts else "mistral",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }
    if shape.num_experts:
        config |= {
            "num_experts_per_tok": shape.experts_per_token,
            "num_local_experts": shape.num_experts,
            "output_router_logits": False,
            "router_aux_loss_coef": BALANCE_WEIGHT,
            "router_jitter_noise": 0.0,
        }
    return config
