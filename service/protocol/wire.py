"""The base of all request bodies: strict types, null means absent, unknown fields are noted."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class WireModel(BaseModel):
    """A JSON object sent by a client. An explicit null is the same as leaving the field out."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """Names the client sent that no field of the model has, sorted."""
        return tuple(sorted(self.model_extra or ()))
