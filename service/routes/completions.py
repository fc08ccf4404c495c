"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.choices import UsageTally, generate_choices
from service.errors import BadRequest, UnsupportedField
from service.generation import TextOutput, TextRequest
from service.logprobs import CompletionLists
from service.openapi import GENERATION_ERRORS, streamed_answer
from service.prompts import Prompt, completion_prompts, split_prompts
from service.protocol.completions import Completion, CompletionRequest
from service.routes.delivery import Envelope, new_envelope, stream_response, whole_response
from service.sampling import answer_budget, sampling_params
from service.sse import frame
from service.state import LoadedModel, ServiceState, service_state

router = APIRouter(tags=["generation"])

_DEFAULT_MAX_TOKENS = 16


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={**GENERATION_ERRORS, **streamed_answer(Completion)},
    operation_id="createCompletion",
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or many, given as text or token ids; in one piece or as a stream."""
    state = service_state(request)
    state.check_model_name(body.model)
    refuse_unsupported_fields(body)
    answer = CompletionAnswer(state, body)
    if body.stream:
        return stream_response(state, body, answer.frames())
    return await whole_response(request, state, body, answer.whole())


def refuse_unsupported_fields(body: CompletionRequest) -> None:
    """Raises UnsupportedField or BadRequest for values that would have to be ignored."""
    if body.suffix:
        raise UnsupportedField("'suffix' is not supported by this server. Leave it out.", param="suffix")
    if body.best_of not in (None, body.num_choices):
        raise UnsupportedField(
            f"'best_of' is only supported when it equals 'n' ({body.num_choices}). Leave it out.",
            param="best_of",
        )
    if body.max_tokens == 0 and not body.echo:
        raise BadRequest("'max_tokens' of 0 generates nothing; it needs `echo: true`.", param="max_tokens")


@dataclass(slots=True)
class _Choice:
    """One answer in the making. `echo` is the prompt's text, empty if it is not wanted."""

    prompt: Prompt
    echo: str
    echo_offsets: list[int]
    logprobs: CompletionLists | None
    started: bool = False

    def take(self, output: TextOutput) -> str:
        """The text that `output` adds, after the echoed prompt the first time; collects log-probabilities."""
        text = output.text
        if not self.started:
            self.started = True
            text = self.echo + text
            if self.logprobs is not None and output.prompt_logprobs is not None:
                self.logprobs.add_prompt(self.prompt.token_ids, output.prompt_logprobs, self.echo_offsets)
        if self.logprobs is not None:
            self.logprobs.add_tokens(output.tokens, len(self.echo))
        return text


class CompletionAnswer:
    """One request's way to its answer. Use `frames` or `whole`, once."""

    def __init__(self, state: ServiceState, body: CompletionRequest) -> None:
        self._state = state
        self._body = body
        self._arrived = time.perf_counter()
        self._num_choices = len(split_prompts(body.prompt)) * body.num_choices
        if self._num_choices == 0:
            raise BadRequest("The list of prompts is empty; expected at least one.", param="prompt")

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        model = self._state.ready_model()
        envelope = self._envelope()
        with self._state.admission.reserve(self._num_choices, param="prompt"):
            choices, requests = await self._prepare(model, envelope)
            tally = self._tally(choices)
            texts: list[list[str]] = [[] for _ in choices]
            last: list[TextOutput | None] = [None for _ in choices]
            outputs = generate_choices(self._state, model, requests, arrived=self._arrived)
            async with aclosing(outputs):
                async for index, output in outputs:
                    texts[index].append(choices[index].take(output))
                    tally.count(index, output)
                    last[index] = output
        payload = envelope.as_json()
        payload["choices"] = [
            {
                "index": index,
                "text": "".join(texts[index]),
                "logprobs": None if (lists := choices[index].logprobs) is None else lists.take(),
                "finish_reason": final.finish_reason,
                "stop_reason": final.stop_reason,
            }
            for index, final in enumerate(last)
            if final is not None
        ]
        payload["usage"] = tally.as_json()
        return payload

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, then usage if asked for."""
        model = self._state.ready_model()
        envelope = self._envelope()
        with self._state.admission.reserve(self._num_choices, param="prompt"):
            choices, requests = await self._prepare(model, envelope)
            tally = self._tally(choices)
            outputs = generate_choices(self._state, model, requests, arrived=self._arrived)
            async with aclosing(outputs):
                async for index, output in outputs:
                    tally.count(index, output)
                    text = choices[index].take(output)
                    if text or output.finish_reason is not None:
                        yield self._chunk(envelope, index, choices[index], text, output)
        if self._body.include_usage:
            payload = envelope.as_json()
            payload["choices"] = []
            payload["usage"] = tally.as_json()
            yield frame(payload)

    def _envelope(self) -> Envelope:
        return new_envelope(self._state, "cmpl", "text_completion", self._body.model)

    async def _prepare(
        self, model: LoadedModel, envelope: Envelope
    ) -> tuple[list[_Choice], list[TextRequest]]:
        body = self._body
        prompts = await self._state.in_text_thread(lambda: self._read_prompts(model))
        choices: list[_Choice] = []
        requests: list[TextRequest] = []
        for prompt, echo, offsets in prompts:
            max_tokens = answer_budget(
                model.info,
                num_prompt_tokens=len(prompt.token_ids),
                requested=body.max_tokens,
                default=_DEFAULT_MAX_TOKENS,
                param="prompt",
            )
            for choice in range(body.num_choices):
                lists = None if body.logprobs is None else CompletionLists(model.tokenizer)
                choices.append(_Choice(prompt, echo, offsets, lists))
                requests.append(self._request(model, envelope, prompt, max_tokens, choice, len(requests)))
        return choices, requests

    def _read_prompts(self, model: LoadedModel) -> list[tuple[Prompt, str, list[int]]]:
        prompts = completion_prompts(model, self._body)
        if not self._body.echo:
            return [(prompt, "", []) for prompt in prompts]
        return [(prompt, *self._echo(model, prompt)) for prompt in prompts]

    def _echo(self, model: LoadedModel, prompt: Prompt) -> tuple[str, list[int]]:
        """The prompt as it is given back, and where in it each token begins."""
        skip = self._body.skip_special_tokens is not False
        text, offsets = model.tokenizer.decode_with_offsets(prompt.token_ids, skip_special_tokens=skip)
        if prompt.text is None:
            return text, offsets
        # A tokenizer that normalises gives back another text; the client's own is what it wants to see.
        return prompt.text, [min(offset, len(prompt.text)) for offset in offsets]

    def _request(
        self,
        model: LoadedModel,
        envelope: Envelope,
        prompt: Prompt,
        max_tokens: int,
        choice: int,
        index: int,
    ) -> TextRequest:
        body = self._body
        # Engines generate nothing only for a request that asks for the prompt's log-probabilities.
        scores_prompt = bool(body.echo) and (body.logprobs is not None or max_tokens == 0)
        return TextRequest(
            request_id=f"{envelope.id}-{index}",
            prompt_token_ids=prompt.token_ids,
            sampling=sampling_params(
                body,
                model.info,
                max_tokens=max_tokens,
                choice=choice,
                num_logprobs=body.logprobs,
                num_prompt_logprobs=(body.logprobs or 0) if scores_prompt else None,
            ),
            stop=body.stop_strings,
            include_stop_str_in_output=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            priority=body.priority or 0,
        )

    def _tally(self, choices: list[_Choice]) -> UsageTally:
        num_choices = self._body.num_choices
        num_prompt_tokens = sum(len(choice.prompt.token_ids) for choice in choices[::num_choices])
        return UsageTally(num_prompt_tokens, num_choices)

    def _chunk(self, envelope: Envelope, index: int, choice: _Choice, text: str, output: TextOutput) -> bytes:
        payload = envelope.as_json()
        payload["choices"] = [
            {
                "index": index,
                "text": text,
                "logprobs": None if choice.logprobs is None else choice.logprobs.take(),
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
            }
        ]
        if self._body.include_usage:
            payload["usage"] = None
        return frame(payload)
