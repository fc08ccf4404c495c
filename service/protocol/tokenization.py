"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from service.protocol.generation import TokenId
from service.protocol.wire import WireModel


class TokenizeRequest(WireModel):
    """The text to cut into tokens."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = Field(default=None, description="On by default, as in /v1/completions.")


class TokenizeResponse(BaseModel):
    """The ids, and how many of them the model can hold."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(WireModel):
    """The ids to turn into text; special tokens are spelled out."""

    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]
    model: str | None = None


class DetokenizeResponse(BaseModel):
    """The text."""

    prompt: str
