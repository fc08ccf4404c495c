"""What the engine has to know of a model before TensorRT-LLM has loaded it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.model_config import ModelConfig
from engines.errors import MalformedCheckpoint

_ModelT = TypeVar("_ModelT", bound=BaseModel)
_BYTES_PER_VALUE = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`eos_token_ids` may be empty. `weight_bytes`: all weight files, about what they take loaded."""

    directory: Path
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: frozenset[int]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    is_mixture_of_experts: bool
    weight_bytes: int

    def kv_bytes_per_token(self, kv_cache_dtype: str, num_gpus: int, num_stages: int = 1) -> int:
        """Bytes of KV cache a token takes on each GPU: keys and values of the layers of its stage (all layers
        are shared out to `num_stages`), of the heads that are its part of `num_gpus`."""
        heads_per_gpu = -(-self.num_kv_heads // num_gpus)
        layers = -(-self.num_layers // num_stages)
        return 2 * layers * heads_per_gpu * self.head_dim * _BYTES_PER_VALUE[kv_cache_dtype]


def facts_of(directory: Path, config: ModelConfig) -> ModelFacts:
    """The facts in a configuration that has been read."""
    return ModelFacts(
        directory=directory,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        eos_token_ids=config.eos_token_ids,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        is_mixture_of_experts=config.num_experts > 0,
        weight_bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
    )


class _PretrainedConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    hidden_size: PositiveInt
    head_size: PositiveInt | None = None


class _BuildConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    max_seq_len: PositiveInt


class _EngineConfig(BaseModel):
    """config.json of an engine directory (reference section 7)."""

    model_config = ConfigDict(strict=True, extra="ignore")

    pretrained_config: _PretrainedConfig
    build_config: _BuildConfig


class _GenerationConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    eos_token_id: int | list[int] | None = None


def read_engine_facts(directory: Path) -> ModelFacts:
    """The facts about an engine made by trtllm-build; its context is the one it was built for.

    The end-of-sequence ids are those of generation_config.json, which `nybble build` copies. Raises
    MalformedCheckpoint.
    """
    config = _validated(_EngineConfig, directory / "config.json")
    model = config.pretrained_config
    generation = _validated(_GenerationConfig, directory / "generation_config.json")
    eos = generation.eos_token_id
    return ModelFacts(
        directory=directory,
        vocab_size=model.vocab_size,
        max_position_embeddings=min(model.max_position_embeddings, config.build_config.max_seq_len),
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or []),
        num_layers=model.num_hidden_layers,
        num_kv_heads=model.num_key_value_heads,
        head_dim=model.head_size or model.hidden_size // model.num_attention_heads,
        is_mixture_of_experts=False,
        weight_bytes=sum(path.stat().st_size for path in directory.glob("rank*.engine")),
    )


def _validated(model: type[_ModelT], path: Path) -> _ModelT:
    try:
        return model.model_validate(read_json_object(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise MalformedCheckpoint(f"{path}: {field}: {first['msg']} (got {first['input']!r:.100})") from None
