"""Rotary position embedding as config.json describes it, in the old and in the new spelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import MalformedCheckpoint, UnsupportedCheckpoint

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")
_DEFAULT_THETA = {"MixtralForCausalLM": 1_000_000.0}  # transformers' own defaults; 10000 for the others
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """`kind` is "default", "linear" (uses `factor`) or "llama3" (uses all of them)."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


class _RopeJson(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    rope_theta: _Positive | None = None
    rope_type: str | None = None
    type: str | None = None
    factor: _Positive | None = None
    low_freq_factor: _Positive | None = None
    high_freq_factor: _Positive | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    partial_rotary_factor: float | None = None


def parse_rope(path: Path, raw: Mapping[str, Any], architecture: str) -> RopeConfig:
    """From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`. Raises CheckpointError."""
    fields = _fields(path, raw)
    kind = fields.rope_type or fields.type or "default"
    if kind not in SUPPORTED_ROPE_TYPES:
        raise UnsupportedCheckpoint(
            f"{path}: rope type {kind!r:.100} is not supported; "
            f"supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    if fields.partial_rotary_factor not in (None, 1.0):
        raise UnsupportedCheckpoint(
            f"{path}: partial_rotary_factor is {fields.partial_rotary_factor}; only 1 is supported"
        )
    theta = fields.rope_theta or _DEFAULT_THETA.get(architecture, 10_000.0)
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, kind, factor=_required(path, kind, "factor", fields.factor))
    low = _required(path, kind, "low_freq_factor", fields.low_freq_factor)
    high = _required(path, kind, "high_freq_factor", fields.high_freq_factor)
    if high <= low:
        raise MalformedCheckpoint(f"{path}: high_freq_factor {high} must be above low_freq_factor {low}")
    original = fields.original_max_position_embeddings
    return RopeConfig(
        theta,
        kind,
        _required(path, kind, "factor", fields.factor),
        low,
        high,
        int(_required(path, kind, "original_max_position_embeddings", original)),
    )


def _fields(path: Path, raw: Mapping[str, Any]) -> _RopeJson:
    merged: dict[str, Any] = {}
    for name in ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor"):
        if raw.get(name) is not None:
            merged[name] = raw[name]
    for name in ("rope_scaling", "rope_parameters"):
        section = raw.get(name)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise MalformedCheckpoint(f"{path}: {name} is {section!r:.100}; expected an object or null")
        merged.update({key: value for key, value in section.items() if value is not None})
    try:
        return _RopeJson.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise MalformedCheckpoint(
            f"{path}: rope {field}: {first['msg']} (got {first['input']!r:.100})"
        ) from None


def _required(path: Path, kind: str, name: str, value: float | None) -> float:
    if value is None:
        raise MalformedCheckpoint(f"{path}: rope type {kind!r} needs {name}, which is absent")
    return value
