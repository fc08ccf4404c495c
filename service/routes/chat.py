"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.admission.demand import Demand
from service.errors import BadRequest, UnsupportedField
from service.generation import TextOutput, TextRequest
from service.large_bodies import PatientRoute
from service.logprobs import chat_entries
from service.openapi import GENERATION_ERRORS, streamed_answer
from service.prompts import chat_prompt
from service.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from service.routes.answer import ASSUMED_ANSWER_TOKENS, Answer, Intake, estimated_tokens, take_in
from service.routes.delivery import new_envelope, stream_response, whole_response
from service.sampling import answer_budget, sampling_params
from service.state import LoadedModel, ServiceState, service_state
from service.structured_output import grammar_of

router = APIRouter(tags=["generation"], route_class=PatientRoute)


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
    check_message_count(body, state.settings.max_messages)
    answer = ChatAnswer(state, body, take_in(request, body))
    if body.stream:
        return stream_response(request, state, body, answer.frames())
    return await whole_response(request, state, body, answer.whole())


def refuse_unsupported_fields(body: ChatCompletionRequest) -> None:
    """Raises UnsupportedField for a documented field whose value would have to be ignored."""
    refused = {
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


def check_message_count(body: ChatCompletionRequest, max_messages: int) -> None:
    """Raises BadRequest for a conversation of too many messages."""
    if len(body.messages) > max_messages:
        raise BadRequest(
            f"The conversation has {len(body.messages)} messages; this server takes at most {max_messages}. "
            "Leave out or join older ones.",
            param="messages",
        )


class ChatAnswer(Answer):
    """A conversation's next turn. A stream says for each choice: role, text, finish reason."""

    operation = "chat"

    def __init__(self, state: ServiceState, body: ChatCompletionRequest, intake: Intake) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(
            state, body, intake, new_envelope(state, "chatcmpl", kind, body.model), demand_of(body, intake)
        )
        self._body: ChatCompletionRequest = body
        self._want_logprobs = bool(body.logprobs)
        self._texts: list[list[str]] = [[] for _ in range(body.num_choices)]
        self._entries: list[list[dict[str, Any]]] = [[] for _ in range(body.num_choices)]
        self._last: list[TextOutput | None] = [None] * body.num_choices
        self._unopened = set(range(body.num_choices))

    async def _prepare(self, model: LoadedModel) -> list[TextRequest]:
        body = self._body
        self._model = model
        prompt = await self._state.in_text_thread(lambda: chat_prompt(model, body))
        grammar = grammar_of(body, model.info)
        newer = body.max_completion_tokens is not None
        max_tokens = answer_budget(
            model.info,
            num_prompt_tokens=len(prompt.token_ids),
            requested=body.max_completion_tokens if newer else body.max_tokens,
            default=None,
            param="messages",
        )
        return [
            TextRequest(
                request_id=f"{self._envelope.id}-{choice}",
                prompt_token_ids=prompt.token_ids,
                sampling=sampling_params(
                    body,
                    model.info,
                    max_tokens=max_tokens,
                    choice=choice,
                    num_logprobs=(body.top_logprobs or 0) if self._want_logprobs else None,
                    grammar=grammar,
                    defaults=model.sampling_defaults,
                ),
                stop=body.stop_strings,
                include_stop_str_in_output=bool(body.include_stop_str_in_output),
                skip_special_tokens=body.skip_special_tokens is not False,
                priority=self._intake.priority,
                with_tokens=self._want_logprobs,
            )
            for choice in range(body.num_choices)
        ]

    def _take(self, index: int, output: TextOutput) -> None:
        self._texts[index].append(output.text)
        if self._want_logprobs:
            self._entries[index].extend(chat_entries(output.tokens, self._model.tokenizer))
        self._last[index] = output

    def _choices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(self._texts[index]), "refusal": None},
                "logprobs": {"content": self._entries[index], "refusal": None}
                if self._want_logprobs
                else None,
                "finish_reason": final.finish_reason,
                "stop_reason": final.stop_reason,
            }
            for index, final in enumerate(self._last)
            if final is not None
        ]

    def _chunks(self, index: int, output: TextOutput) -> Iterator[dict[str, Any]]:
        if index in self._unopened:
            self._unopened.remove(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if output.text or output.finish_reason or (self._want_logprobs and output.tokens):
            logprobs = None
            if self._want_logprobs and output.tokens:
                logprobs = {"content": chat_entries(output.tokens, self._model.tokenizer), "refusal": None}
            delta = {"content": output.text} if output.text else {}
            yield self._chunk(index, delta, logprobs, output)

    def _prompt_json(self) -> object:
        return [message.model_dump(mode="json", exclude_none=True) for message in self._body.messages]

    def _adds_text_only(self, index: int) -> bool:
        return not self._want_logprobs and index not in self._unopened

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"content": text})

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None = None,
        output: TextOutput | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if output is not None and output.finish_reason is not None:
            choice["finish_reason"] = output.finish_reason
            choice["stop_reason"] = output.stop_reason
        return choice


def demand_of(body: ChatCompletionRequest, intake: Intake) -> Demand:
    """What the conversation may need, guessed from its characters."""
    num_characters = 0
    for message in body.messages:
        parts = message.content if isinstance(message.content, list) else ()
        texts = [message.content] if isinstance(message.content, str) else [part.text for part in parts]
        num_characters += sum(len(text or "") for text in texts)
    return Demand(
        num_sequences=body.num_choices,
        num_prompt_tokens=estimated_tokens(num_characters),
        num_answer_tokens=body.max_completion_tokens or body.max_tokens or ASSUMED_ANSWER_TOKENS,
        num_choices=body.num_choices,
        priority=intake.priority,
    )
