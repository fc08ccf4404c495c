"""What a model costs per token: bytes read and operations done, by what they are stored as."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu.linear import read_bytes, screen_bytes

KV_ELEMENT_BYTES = {"bfloat16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Sums over a set of modules: stored bytes, and multiplications per token in FP4 and otherwise."""

    num_bytes: int = 0
    fp4_weights: int = 0
    other_weights: int = 0

    def __add__(self, other: LayerCost) -> LayerCost:
        return LayerCost(
            self.num_bytes + other.num_bytes,
            self.fp4_weights + other.fp4_weights,
            self.other_weights + other.other_weights,
        )


@dataclass(frozen=True, slots=True)
class ModelCost:
    """`always` is read and computed for every token; `head` for every token that is sampled; `experts` are
    all experts together, of which a token uses `num_experts_per_token` of `num_experts`. `embedding_bytes`
    lie in memory but are looked up, not read through (0 when they are the head too). `screen_bytes` are those
    of the CPU engine's screen of the head."""

    always: LayerCost
    head: LayerCost
    experts: LayerCost
    num_experts: int
    num_experts_per_token: int
    embedding_bytes: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    screen_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """All weights, a screen of the head left out."""
        return self.always.num_bytes + self.head.num_bytes + self.experts.num_bytes + self.embedding_bytes

    @property
    def loaded_bytes(self) -> int:
        """What an engine keeps of weights: with the screen where there is one."""
        return self.resident_bytes + self.screen_bytes

    @property
    def used_share(self) -> float:
        """Of the experts' operations, what one token needs."""
        return self.num_experts_per_token / self.num_experts if self.num_experts else 0.0

    def touched_share(self, num_tokens: int) -> float:
        """Of the experts' bytes, what a step of `num_tokens` is expected to read: 1 - (1 - k/E)^n, for a
        router without preferences."""
        return float(1.0 - (1.0 - self.used_share) ** num_tokens)

    def kv_bytes_per_token(self, kv_cache_dtype: str, *, has_row_scales: bool = False) -> int:
        """Keys and values of all layers; `has_row_scales`: with a byte per KV head for FP8's scale."""
        row_bytes = self.head_dim * KV_ELEMENT_BYTES[kv_cache_dtype]
        if has_row_scales and kv_cache_dtype == "fp8":
            row_bytes += 1
        return 2 * self.num_layers * self.num_kv_heads * row_bytes

    def attention_operations(self, context: int) -> int:
        """Of one token over `context` tokens: a product with each key and each value, 2 operations each."""
        return 4 * self.num_layers * self.num_heads * self.head_dim * context


def model_cost(checkpoint: Checkpoint, *, as_nvfp4: bool, as_read: bool = False) -> ModelCost:
    """The cost of a checkpoint; `as_nvfp4` counts MXFP4 weights as what a GPU would run, transcoded.

    `as_read` counts what the CPU engine's kernels read of a weight, for which all block scales are read.
    """
    config = checkpoint.config
    always, head, experts, embedding_bytes = LayerCost(), LayerCost(), LayerCost(), 0
    head_module = checkpoint.linear("lm_head")
    head_name = head_module.name
    for module in checkpoint.modules():
        cost = _cost(module, as_nvfp4=as_nvfp4)
        if as_read:
            cost = replace(cost, num_bytes=read_bytes(module))
        if module.name == head_name:
            head = cost
        elif module.name == "model.embed_tokens":
            embedding_bytes = cost.num_bytes
        elif ".experts." in module.name:
            experts += cost
        else:
            always += cost
    return ModelCost(
        always=always,
        head=head,
        experts=experts,
        num_experts=config.num_experts,
        num_experts_per_token=config.num_experts_per_token,
        embedding_bytes=embedding_bytes,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        screen_bytes=0 if as_nvfp4 else screen_bytes(head_module) or 0,
    )


def greedy_cost(cost: ModelCost) -> ModelCost:
    """What greedy decoding costs: the screen of the head is read, and multiplied in two int8 parts, in its
    place. The few outputs that are then computed are left out."""
    if cost.screen_bytes == 0:
        return cost
    return replace(cost, head=LayerCost(cost.screen_bytes, 2 * cost.head.other_weights, 0))


def _cost(module: Fp4Tensors | DenseTensors, *, as_nvfp4: bool) -> LayerCost:
    if isinstance(module, DenseTensors):
        return LayerCost(module.data.nbytes, 0, module.data.size)
    num_weights = module.num_rows * module.num_columns
    group_size = 16 if as_nvfp4 else module.group_size
    return LayerCost(num_weights // 2 + num_weights // group_size, num_weights, 0)
