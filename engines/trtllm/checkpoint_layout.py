"""Which module of the Hugging Face model goes into which module of TensorRT-LLM's, and how ranks share it.

The names and orders are those of its class LLaMAForCausalLM, which Mistral and Mixtral are built with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.trtllm.errors import BuildRefused
from engines.trtllm.swizzle import TILE_COLUMNS, TILE_ROWS

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_GROUP_SIZE = 16


@dataclass(frozen=True, slots=True, eq=False)
class TargetLinear:
    """One linear layer of the target: `experts[e]` are the source modules whose rows follow one another.

    Of each source module a rank takes its share along `axis` (0 rows, 1 columns) before they are joined.
    A dense layer has one expert, and its tensors no leading dimension.
    """

    name: str
    axis: int
    experts: tuple[tuple[Fp4Tensors | DenseTensors, ...], ...]
    is_moe: bool = False

    @property
    def is_fp4(self) -> bool:
        return isinstance(self.experts[0][0], Fp4Tensors)

    @property
    def sources(self) -> tuple[Fp4Tensors | DenseTensors, ...]:
        """All source modules, expert after expert."""
        return tuple(module for expert in self.experts for module in expert)

    def shape(self, tensor_parallel: int) -> tuple[int, int]:
        """[N, K] of one expert on one rank."""
        sizes = [_size(module) for module in self.experts[0]]
        num_rows, num_columns = sum(rows for rows, _ in sizes), sizes[0][1]
        if self.axis == 0:
            return num_rows // tensor_parallel, num_columns
        return num_rows, num_columns // tensor_parallel


@dataclass(frozen=True, slots=True, eq=False)
class TargetDense:
    """An unquantised tensor `name`: whole on every rank, or `split_rows` (padded with zeros to divide)."""

    name: str
    module: DenseTensors
    split_rows: bool = False
    to_float32: bool = False


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """`exclude` are the names of this layer's modules that the target must be told are not quantised."""

    linears: tuple[TargetLinear, ...]
    dense: tuple[TargetDense, ...]
    exclude: tuple[str, ...]


def layer_name(layer: int) -> str:
    """The prefix of one layer's modules in the target."""
    return f"transformer.layers.{layer}"


def target_layers(checkpoint: Checkpoint, *, converted_later: bool = False) -> Iterator[TargetLayer]:
    """Every decoder layer. Raises BuildRefused where the target cannot express what the checkpoint has.

    With `converted_later`, FP4 in another layout than modelopt's NVFP4 is let through.
    """
    for layer in range(checkpoint.config.num_layers):
        linears = (*_attention(checkpoint, layer), *_feed_forward(checkpoint, layer))
        for linear in linears:
            _require_alike(linear)
            if not converted_later:
                _require_modelopt(linear)
        excluded = tuple(_exclusion_name(linear) for linear in linears if not linear.is_fp4)
        yield TargetLayer(linears, tuple(_dense(checkpoint, layer)), tuple(dict.fromkeys(excluded)))


def outer_tensors(checkpoint: Checkpoint) -> tuple[TargetDense, ...]:
    """Embedding, last norm and head; a tied head is written as a copy of the embedding."""
    head = checkpoint.linear("lm_head")
    if isinstance(head, Fp4Tensors):
        raise BuildRefused(
            f"{head.name}: is stored in FP4; TensorRT-LLM's checkpoint keeps the head in bfloat16, "
            "so make the checkpoint with lm_head excluded"
        )
    return (
        TargetDense("transformer.vocab_embedding.weight", checkpoint.dense("model.embed_tokens")),
        TargetDense("transformer.ln_f.weight", checkpoint.dense("model.norm")),
        TargetDense("lm_head.weight", head, split_rows=True),
    )


def check_split(linear: TargetLinear, tensor_parallel: int) -> None:
    """Refuse shares that TensorRT-LLM would have to pad or cannot cut. Raises BuildRefused."""
    advice = "choose a smaller --tensor-parallel, or the PyTorch path (--path pytorch)"
    for module in linear.experts[0]:
        size = _size(module)[linear.axis]
        unit = _GROUP_SIZE if linear.axis == 1 and linear.is_fp4 else 1
        if size % (tensor_parallel * unit):
            what = "rows" if linear.axis == 0 else "columns"
            raise BuildRefused(
                f"{module.name}: {size} {what} cannot be split over {tensor_parallel} ranks"
                f"{' in whole blocks of 16' if unit > 1 else ''}; {advice}"
            )
    if not linear.is_fp4:
        return
    num_rows, num_columns = linear.shape(tensor_parallel)
    num_scales = num_columns // _GROUP_SIZE
    if num_rows % TILE_ROWS or num_scales % TILE_COLUMNS or num_columns % _GROUP_SIZE:
        raise BuildRefused(
            f"{linear.name}: a rank has {num_rows} rows of {num_scales} block scales; TensorRT-LLM loads "
            f"whole multiples of {TILE_ROWS} and {TILE_COLUMNS} only, no padding; {advice}"
        )


def _attention(checkpoint: Checkpoint, layer: int) -> Iterator[TargetLinear]:
    source, target = f"model.layers.{layer}.self_attn", f"{layer_name(layer)}.attention"
    qkv = tuple(checkpoint.linear(f"{source}.{name}") for name in _ATTENTION)
    yield TargetLinear(f"{target}.qkv", 0, (qkv,))
    yield TargetLinear(f"{target}.dense", 1, ((checkpoint.linear(f"{source}.o_proj"),),))


def _feed_forward(checkpoint: Checkpoint, layer: int) -> Iterator[TargetLinear]:
    """`fc` is the activated projection, `gate` the linear one; an expert's fc holds w3 (up), then w1."""
    target = f"{layer_name(layer)}.mlp"
    num_experts = checkpoint.config.num_experts
    if num_experts:
        parts = [
            {part: checkpoint.expert(layer, expert, part) for part in ("gate", "up", "down")}
            for expert in range(num_experts)
        ]
        yield TargetLinear(f"{target}.fc", 0, tuple((one["up"], one["gate"]) for one in parts), True)
        yield TargetLinear(f"{target}.proj", 1, tuple((one["down"],) for one in parts), True)
        return
    source = f"model.layers.{layer}.mlp"
    yield TargetLinear(f"{target}.fc", 0, ((checkpoint.linear(f"{source}.gate_proj"),),))
    yield TargetLinear(f"{target}.gate", 0, ((checkpoint.linear(f"{source}.up_proj"),),))
    yield TargetLinear(f"{target}.proj", 1, ((checkpoint.linear(f"{source}.down_proj"),),))


def _dense(checkpoint: Checkpoint, layer: int) -> Iterator[TargetDense]:
    source, target = f"model.layers.{layer}", layer_name(layer)
    yield TargetDense(f"{target}.input_layernorm.weight", checkpoint.dense(f"{source}.input_layernorm"))
    yield TargetDense(
        f"{target}.post_layernorm.weight", checkpoint.dense(f"{source}.post_attention_layernorm")
    )
    if checkpoint.config.num_experts:
        yield TargetDense(f"{target}.mlp.router.weight", checkpoint.router(layer), to_float32=True)


def _require_alike(linear: TargetLinear) -> None:
    """All sources of one target module are FP4 or none is, and none has a bias."""
    for module in linear.sources:
        if isinstance(module, Fp4Tensors) is not linear.is_fp4:
            raise BuildRefused(
                f"{linear.name}: {module.name} and {linear.sources[0].name} are not stored alike; "
                "TensorRT-LLM quantises them together or not at all"
            )
        if module.bias is not None:
            raise BuildRefused(f"{module.name}: has a bias, which this checkpoint writer does not know")


def _require_modelopt(linear: TargetLinear) -> None:
    for module in linear.sources:
        if not isinstance(module, Fp4Tensors):
            continue
        if (module.format, module.convention) != ("nvfp4", "modelopt"):
            raise BuildRefused(
                f"{module.name}: is {module.format} as {module.convention} stores it; expected modelopt's "
                "NVFP4: run `nybble convert --to nvfp4-modelopt` first"
            )
        if module.input_scale is None:
            raise BuildRefused(
                f"{module.name}: has no input scale; TensorRT-LLM's NVFP4 layers need one: convert the "
                "checkpoint again with --calibration"
            )


def _exclusion_name(linear: TargetLinear) -> str:
    """A mixture of experts is excluded as a whole: "...mlp", a dense layer's module by its own name."""
    return linear.name.rpartition(".")[0] if linear.is_moe else linear.name


def _size(module: Fp4Tensors | DenseTensors) -> tuple[int, int]:
    if isinstance(module, Fp4Tensors):
        return module.num_rows, module.num_columns
    num_rows, num_columns = module.shape
    return num_rows, num_columns
