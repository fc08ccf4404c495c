"""RequestOutput and CompletionOutput: changed in place by every response, and their own iterator."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


class RequestError(RuntimeError):
    """One request has failed."""


class CppExecutorError(RuntimeError):
    """The executor has failed."""


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True)
class Response:
    """What one step of the executor says about a request."""

    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    prompt_logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    cached_tokens: int = 0
    context_logits: Any = None


class RequestOutput:
    """Awaitable and async-iterable; the iterator yields the object itself."""

    def __init__(self, request_id: int, prompt_token_ids: list[int], params: Any, streaming: bool) -> None:
        self.request_id = request_id
        self.prompt = None
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(0)]
        self.finished = False
        self.cached_tokens = 0
        self.context_logits: Any = None
        self.is_cancelled = False
        self._params = params
        self._streaming = streaming
        self._responses: asyncio.Queue[Response | BaseException] = asyncio.Queue()
        self._kept: list[Response] = []

    def abort(self) -> None:
        self.is_cancelled = True

    def aborted(self) -> bool:
        return self.is_cancelled

    def push(self, response: Response | BaseException) -> None:
        """The executor's side. Without streaming everything comes at the end."""
        if not self._streaming and isinstance(response, Response) and response.finish_reason is None:
            self._kept.append(response)
            return
        for kept in self._kept:
            self._apply(kept)
        self._kept.clear()
        self._responses.put_nowait(response)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        response = await self._responses.get()
        if isinstance(response, BaseException):
            raise response
        self._apply(response)
        return self

    def _apply(self, response: Response) -> None:
        output = self.outputs[0]
        output.token_ids.extend(response.token_ids)
        output.logprobs.extend(response.logprobs)
        if response.prompt_logprobs is not None:
            output.prompt_logprobs = response.prompt_logprobs
        if response.context_logits is not None:
            self.context_logits = response.context_logits
        self.cached_tokens = response.cached_tokens
        if response.finish_reason is None:
            return
        self.finished = True
        output.finish_reason = response.finish_reason
        output.stop_reason = response.stop_reason
        if response.stop_reason is not None and not self._params.include_stop_str_in_output:
            del output.token_ids[-1:]
