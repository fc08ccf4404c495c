"""Token counts as OpenAI reports them."""

from __future__ import annotations

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens: how many were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the generated tokens: how many were reasoning."""

    reasoning_tokens: int


class UsageTiming(BaseModel):
    """Extension: where the request's time went. Of several answers, which run side by side, the longest."""

    tokenize_seconds: float | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None


class Usage(BaseModel):
    """Counts of one request; a prompt is counted once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    timing: UsageTiming | None = None
