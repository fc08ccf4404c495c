"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.choices import UsageTally, generate_choices
from service.errors import UnsupportedField
from service.generation import TextOutput, TextRequest
from service.logprobs import chat_entries
from service.openapi import GENERATION_ERRORS, streamed_answer
from service.prompts import Prompt, chat_prompt
from service.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from service.routes.delivery import Envelope, new_envelope, stream_response, whole_response
from service.sampling import answer_budget, sampling_params
from service.sse import frame
from service.state import LoadedModel, ServiceState, service_state

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**GENERATION_ERRORS, **streamed_answer(ChatCompletionChunk)},
    operation_id="createChatCompletion",
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    state = service_state(request)
    state.check_model_name(body.model)
    refuse_unsupported_fields(body)
    answer = ChatAnswer(state, body)
    if body.stream:
        return stream_response(state, body, answer.frames())
    return await whole_response(request, state, body, answer.whole())


def refuse_unsupported_fields(body: ChatCompletionRequest) -> None:
    """Raises UnsupportedField for a documented field whose value would have to be ignored."""
    refused = {
        "response_format": body.response_format is not None and body.response_format.type != "text",
        "tools": bool(body.tools) and body.tool_choice != "none",
        "tool_choice": body.tool_choice not in (None, "none", "auto"),
        "functions": bool(body.functions) and body.function_call != "none",
        "function_call": body.function_call not in (None, "none", "auto"),
        "modalities": body.modalities not in (None, ["text"]),
        "audio": body.audio is not None,
        "moderation": body.moderation is not None,
        "verbosity": body.verbosity not in (None, "medium"),
        "web_search_options": body.web_search_options is not None,
        "service_tier": body.service_tier not in (None, "auto", "default"),
        "store": bool(body.store),
        "top_logprobs": body.top_logprobs is not None and not body.logprobs,
    }
    for name, is_refused in refused.items():
        if is_refused:
            hint = "It needs `logprobs: true`." if name == "top_logprobs" else "Leave it out."
            raise UnsupportedField(
                f"The given value of '{name}' is not supported by this server. {hint}", param=name
            )


class ChatAnswer:
    """One request's way to its answer. Use `frames` or `whole`, once."""

    def __init__(self, state: ServiceState, body: ChatCompletionRequest) -> None:
        self._state = state
        self._body = body
        self._arrived = time.perf_counter()
        self._want_logprobs = bool(body.logprobs)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        body = self._body
        model = self._state.ready_model()
        texts: list[list[str]] = [[] for _ in range(body.num_choices)]
        entries: list[list[dict[str, Any]]] = [[] for _ in range(body.num_choices)]
        last: list[TextOutput | None] = [None] * body.num_choices
        envelope = self._envelope("chat.completion")
        with self._state.admission.reserve(body.num_choices):
            prompt, requests = await self._prepare(model, envelope)
            tally = UsageTally(len(prompt.token_ids), body.num_choices)
            outputs = generate_choices(self._state, model, requests, arrived=self._arrived)
            async with aclosing(outputs):
                async for index, output in outputs:
                    texts[index].append(output.text)
                    if self._want_logprobs:
                        entries[index].extend(chat_entries(output.tokens, model.tokenizer))
                    tally.count(index, output)
                    last[index] = output
        payload = envelope.as_json()
        payload["choices"] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
                "logprobs": {"content": entries[index], "refusal": None} if self._want_logprobs else None,
                "finish_reason": final.finish_reason,
                "stop_reason": final.stop_reason,
            }
            for index, final in enumerate(last)
            if final is not None
        ]
        payload["usage"] = tally.as_json()
        return payload

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as events: role, text, finish reason for each choice, then usage if asked for."""
        body = self._body
        model = self._state.ready_model()
        envelope = self._envelope("chat.completion.chunk")
        with self._state.admission.reserve(body.num_choices):
            prompt, requests = await self._prepare(model, envelope)
            tally = UsageTally(len(prompt.token_ids), body.num_choices)
            unopened = set(range(body.num_choices))
            outputs = generate_choices(self._state, model, requests, arrived=self._arrived)
            async with aclosing(outputs):
                async for index, output in outputs:
                    tally.count(index, output)
                    if index in unopened:
                        unopened.remove(index)
                        yield self._chunk(envelope, index, {"role": "assistant", "content": ""})
                    if output.text or output.finish_reason or (self._want_logprobs and output.tokens):
                        yield self._output_chunk(envelope, model, index, output)
        if body.include_usage:
            payload = envelope.as_json()
            payload["choices"] = []
            payload["usage"] = tally.as_json()
            yield frame(payload)

    def _envelope(self, kind: str) -> Envelope:
        return new_envelope(self._state, "chatcmpl", kind, self._body.model)

    async def _prepare(self, model: LoadedModel, envelope: Envelope) -> tuple[Prompt, list[TextRequest]]:
        body = self._body
        prompt = await self._state.in_text_thread(lambda: chat_prompt(model, body))
        newer = body.max_completion_tokens is not None
        max_tokens = answer_budget(
            model.info,
            num_prompt_tokens=len(prompt.token_ids),
            requested=body.max_completion_tokens if newer else body.max_tokens,
            default=None,
            param="messages",
        )
        requests = [
            TextRequest(
                request_id=f"{envelope.id}-{choice}",
                prompt_token_ids=prompt.token_ids,
                sampling=sampling_params(
                    body,
                    model.info,
                    max_tokens=max_tokens,
                    choice=choice,
                    num_logprobs=(body.top_logprobs or 0) if self._want_logprobs else None,
                ),
                stop=body.stop_strings,
                include_stop_str_in_output=bool(body.include_stop_str_in_output),
                skip_special_tokens=body.skip_special_tokens is not False,
                priority=body.priority or 0,
            )
            for choice in range(body.num_choices)
        ]
        return prompt, requests

    def _output_chunk(self, envelope: Envelope, model: LoadedModel, index: int, output: TextOutput) -> bytes:
        logprobs = None
        if self._want_logprobs and output.tokens:
            logprobs = {"content": chat_entries(output.tokens, model.tokenizer), "refusal": None}
        delta = {"content": output.text} if output.text else {}
        return self._chunk(envelope, index, delta, logprobs, output)

    def _chunk(
        self,
        envelope: Envelope,
        index: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None = None,
        output: TextOutput | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if output is not None and output.finish_reason is not None:
            choice["finish_reason"] = output.finish_reason
            choice["stop_reason"] = output.stop_reason
        payload = envelope.as_json()
        payload["choices"] = [choice]
        if self._body.include_usage:
            payload["usage"] = None
        return frame(payload)
