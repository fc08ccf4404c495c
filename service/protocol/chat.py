"""POST /v1/chat/completions: request, answer, chunk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.protocol.generation import INT64_MAX, GenerationFields
from service.protocol.usage import Usage
from service.protocol.wire import WireModel


class ContentPart(WireModel):
    """A piece of a message; only text can be served."""

    type: str
    text: str | None = None


class ChatMessage(WireModel):
    """One turn. Further fields (name, tool_calls, ...) are handed to the chat template as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class ChatCompletionRequest(GenerationFields):
    """OpenAI's fields, then extensions. Those that cannot be honoured are refused by name."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_tokens: int | None = Field(default=None, ge=1, le=INT64_MAX, description="The older name.")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=INT64_MAX)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = Field(default=None, description="A hint; accepted without effect.")
    reasoning_effort: str | None = Field(default=None, description="Handed to the chat template.")
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = Field(default=None, description="A hint; accepted without effect.")
    prompt_cache_options: dict[str, Any] | None = Field(default=None, description="A hint; without effect.")
    prompt_cache_retention: str | None = Field(default=None, description="A hint; accepted without effect.")
    safety_identifier: str | None = None

    add_generation_prompt: bool | None = Field(default=None, description="Extension; on by default.")
    continue_final_message: bool | None = Field(default=None, description="Extension: prefill the answer.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Extension.")


class TopLogprob(BaseModel):
    """An alternative to a token. A probability of zero is sent as -9999.0, since JSON has no infinity."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobEntry(TopLogprob):
    """A generated token and its likeliest alternatives, best first."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """One entry for each token of the answer."""

    content: list[TokenLogprobEntry] | None
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """`stop_reason` (extension): the stop string or id that ended the answer, null for end of sequence."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class ChatCompletion(BaseModel):
    """The whole answer at once."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds: the role in the first one, text in the others."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """The finish reason is in the last chunk of a choice only."""

    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None


class ChatCompletionChunk(BaseModel):
    """A server-sent event. `usage` is there with `include_usage` only: null until the last chunk."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
