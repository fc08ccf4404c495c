"""config.json and generation_config.json -> `ModelConfig`: all about the model but its quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.rope_config import RopeConfig, parse_rope
from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")

# Generous bounds: far above any model of these architectures, far below what could exhaust memory in a loop.
_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Eos = int | list[int] | None
_ModelT = TypeVar("_ModelT", bound=BaseModel)
_MISTRAL_DEFAULT_WINDOW = 4096  # what transformers assumes when config.json does not say


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder-only transformer. `num_experts` is 0 for a dense model.

    `sliding_window` None means full attention. `eos_token_ids` joins both configuration files.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    sliding_window: int | None
    num_experts: int
    num_experts_per_token: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    dtype: str


class _ConfigJson(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=1024)]
    num_attention_heads: Annotated[int, Field(ge=1, le=4096)]
    num_key_value_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    head_dim: Annotated[int, Field(ge=2, le=4096)] | None = None
    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)]
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 27)]
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    hidden_act: str = "silu"
    sliding_window: Annotated[int, Field(ge=1)] | None = None
    num_local_experts: Annotated[int, Field(ge=1, le=1024)] | None = None
    num_experts_per_tok: Annotated[int, Field(ge=1, le=1024)] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: _Eos = None
    dtype: str | None = None
    torch_dtype: str | None = None


class _GenerationConfigJson(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    eos_token_id: _Eos = None


def read_model_config(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The configuration, and config.json itself for the quantisation parser.

    Raises MalformedCheckpoint for values that cannot be, UnsupportedCheckpoint for what no engine here runs.
    """
    path = directory / "config.json"
    raw = read_json_object(path)
    architecture = _architecture(path, raw)
    fields = _validated(_ConfigJson, raw, path)
    if fields.hidden_act != "silu":
        raise UnsupportedCheckpoint(f"{path}: hidden_act is {fields.hidden_act!r}; only 'silu' is supported")
    is_moe = architecture == "MixtralForCausalLM"
    num_experts, num_experts_per_token = _experts(path, fields) if is_moe else (0, 0)
    num_kv_heads = fields.num_key_value_heads or fields.num_attention_heads
    config = ModelConfig(
        architecture=architecture,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=fields.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(path, fields),
        vocab_size=fields.vocab_size,
        max_position_embeddings=fields.max_position_embeddings,
        rms_norm_eps=fields.rms_norm_eps,
        rope=parse_rope(path, raw, architecture),
        sliding_window=_sliding_window(architecture, fields),
        num_experts=num_experts,
        num_experts_per_token=num_experts_per_token,
        tie_word_embeddings=fields.tie_word_embeddings,
        attention_bias=fields.attention_bias and architecture == "LlamaForCausalLM",
        mlp_bias=fields.mlp_bias and architecture == "LlamaForCausalLM",
        bos_token_id=fields.bos_token_id,
        eos_token_ids=_eos_token_ids(directory, fields),
        dtype=fields.dtype or fields.torch_dtype or "bfloat16",
    )
    if config.num_heads % num_kv_heads:
        raise MalformedCheckpoint(
            f"{path}: num_attention_heads {config.num_heads} is no multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    return config, raw


def _architecture(path: Path, raw: Mapping[str, Any]) -> str:
    architectures = raw.get("architectures")
    if (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or not isinstance(architectures[0], str)
    ):
        raise MalformedCheckpoint(f"{path}: architectures is {architectures!r:.100}; expected one name")
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedCheckpoint(
            f"{path}: architecture {architectures[0]!r:.100} is not supported; "
            f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return architectures[0]


def _validated(model: type[_ModelT], raw: Mapping[str, Any], path: Path) -> _ModelT:
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] == "missing" else f" (got {first['input']!r:.100})"
        raise MalformedCheckpoint(f"{path}: {field}: {first['msg']}{got}") from None


def _experts(path: Path, fields: _ConfigJson) -> tuple[int, int]:
    if fields.num_local_experts is None or fields.num_experts_per_tok is None:
        raise MalformedCheckpoint(f"{path}: a Mixtral model needs num_local_experts and num_experts_per_tok")
    if fields.num_experts_per_tok > fields.num_local_experts:
        raise MalformedCheckpoint(
            f"{path}: num_experts_per_tok {fields.num_experts_per_tok} exceeds "
            f"num_local_experts {fields.num_local_experts}"
        )
    return fields.num_local_experts, fields.num_experts_per_tok


def _head_dim(path: Path, fields: _ConfigJson) -> int:
    head_dim = fields.head_dim
    if head_dim is None:
        if fields.hidden_size % fields.num_attention_heads:
            raise MalformedCheckpoint(
                f"{path}: hidden_size {fields.hidden_size} is no multiple of num_attention_heads "
                f"{fields.num_attention_heads} and there is no head_dim"
            )
        head_dim = fields.hidden_size // fields.num_attention_heads
    if head_dim % 2:
        raise MalformedCheckpoint(f"{path}: head_dim is {head_dim}; rotary embeddings need an even one")
    return head_dim


def _sliding_window(architecture: str, fields: _ConfigJson) -> int | None:
    if architecture == "LlamaForCausalLM":
        return None
    if architecture == "MistralForCausalLM" and "sliding_window" not in fields.model_fields_set:
        return _MISTRAL_DEFAULT_WINDOW
    return fields.sliding_window


def _eos_token_ids(directory: Path, fields: _ConfigJson) -> frozenset[int]:
    sources = [(directory / "config.json", fields.eos_token_id)]
    path = directory / "generation_config.json"
    if path.exists():
        sources.append((path, _validated(_GenerationConfigJson, read_json_object(path), path).eos_token_id))
    joined: set[int] = set()
    for source, ids in sources:
        for token_id in [ids] if isinstance(ids, int) else ids or []:
            if not 0 <= token_id < fields.vocab_size:
                raise MalformedCheckpoint(
                    f"{source}: eos_token_id {token_id} is outside the vocabulary of {fields.vocab_size}"
                )
            joined.add(token_id)
    return frozenset(joined)
