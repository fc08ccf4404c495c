"""The fields that hold an answer to a form: OpenAI's `response_format`, and vLLM's names for the rest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from service.protocol.wire import WireModel

MAX_CHOICES = 10_000


class JsonSchemaFormat(WireModel):
    """A schema with its name. It is enforced whether `strict` says so or not."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(WireModel):
    """`type` is "text", "json_object" or "json_schema"; the last one needs `json_schema`."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(WireModel):
    """vLLM's form of the same: one of the fields."""

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = Field(default=None, description="In Lark's notation or llama.cpp's GBNF.")
