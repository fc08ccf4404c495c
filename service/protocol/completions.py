"""POST /v1/completions: request and answer (a streamed chunk has the answer's shape)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from service.protocol.generation import INT64_MAX, GenerationFields, TokenId
from service.protocol.usage import Usage

MAX_PROMPTS = 2048
MAX_PROMPT_IDS = 2**20


def _bound_ids(prompt: Any) -> Any:
    """Counted before each id is looked at, which takes long for millions."""
    if isinstance(prompt, list):
        num_ids = len(prompt) + sum(len(item) for item in prompt[:MAX_PROMPTS] if isinstance(item, list))
        if num_ids > MAX_PROMPT_IDS:
            raise ValueError(f"{num_ids} token ids in one request, expected {MAX_PROMPT_IDS} at most")
    return prompt


class CompletionRequest(GenerationFields):
    """A prompt as text or token ids, or a list of either."""

    prompt: Annotated[
        str
        | Annotated[list[str], Field(max_length=MAX_PROMPTS)]
        | list[TokenId]
        | Annotated[list[list[TokenId]], Field(max_length=MAX_PROMPTS)],
        BeforeValidator(_bound_ids),
    ]
    max_tokens: int | None = Field(default=None, ge=0, le=INT64_MAX, description="The default is 16.")
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=0, le=INT64_MAX)
    suffix: str | None = None


class CompletionLogprobs(BaseModel):
    """Parallel lists, one entry for each token; the first token of an echoed prompt has null.

    A probability of zero is sent as -9999.0. A token that is no valid UTF-8 by itself is written
    "bytes:\\xNN...". `text_offset` counts characters from the start of `text` over all chunks.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """`index` is that of the prompt times `n` plus that of the answer. `finish_reason` ends a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None


class Completion(BaseModel):
    """The answer, or a chunk of it when streamed; a chunk's `usage` is null until the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
