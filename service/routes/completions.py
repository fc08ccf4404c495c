"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engines.request import Grammar
from service.admission.demand import Demand
from service.errors import BadRequest, UnsupportedField
from service.generation import TextOutput, TextRequest
from service.large_bodies import PatientRoute
from service.logprobs import CompletionLists
from service.openapi import GENERATION_ERRORS, streamed_answer
from service.prompts import Prompt, completion_prompts, split_prompts
from service.protocol.completions import Completion, CompletionRequest
from service.routes.answer import Answer, Intake, estimated_tokens, take_in
from service.routes.delivery import new_envelope, stream_response, whole_response
from service.sampling import answer_budget, sampling_params
from service.state import LoadedModel, ServiceState, service_state
from service.structured_output import grammar_of

router = APIRouter(tags=["generation"], route_class=PatientRoute)

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
    answer = CompletionAnswer(state, body, take_in(request, body))
    if body.stream:
        return stream_response(request, state, body, answer.frames())
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
    texts: list[str] = field(default_factory=list)
    last: TextOutput | None = None

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


class CompletionAnswer(Answer):
    """The continuations of the prompts."""

    operation = "text_completion"

    def __init__(self, state: ServiceState, body: CompletionRequest, intake: Intake) -> None:
        super().__init__(
            state,
            body,
            intake,
            new_envelope(state, "cmpl", "text_completion", body.model),
            demand_of(body, intake),
        )
        self._body: CompletionRequest = body
        self._answers: list[_Choice] = []

    async def _prepare(self, model: LoadedModel) -> list[TextRequest]:
        body = self._body
        prompts = await self._state.in_text_thread(lambda: self._read_prompts(model))
        grammar = grammar_of(body, model.info)
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
                self._answers.append(_Choice(prompt, echo, offsets, lists))
                requests.append(self._request(model, prompt, max_tokens, choice, len(requests), grammar))
        return requests

    def _take(self, index: int, output: TextOutput) -> None:
        answer = self._answers[index]
        answer.texts.append(answer.take(output))
        answer.last = output

    def _choices(self) -> list[dict[str, Any]]:
        return [
            _choice_json(index, answer, "".join(answer.texts), answer.last)
            for index, answer in enumerate(self._answers)
            if answer.last is not None
        ]

    def _chunks(self, index: int, output: TextOutput) -> Iterator[dict[str, Any]]:
        text = self._answers[index].take(output)
        if text or output.finish_reason is not None:
            yield _choice_json(index, self._answers[index], text, output)

    def _prompt_json(self) -> object:
        return self._body.prompt

    def _adds_text_only(self, index: int) -> bool:
        answer = self._answers[index]
        return answer.started and answer.logprobs is None

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}

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
        prompt: Prompt,
        max_tokens: int,
        choice: int,
        index: int,
        grammar: Grammar | None,
    ) -> TextRequest:
        body = self._body
        # Engines generate nothing only for a request that asks for the prompt's log-probabilities.
        scores_prompt = bool(body.echo) and (body.logprobs is not None or max_tokens == 0)
        return TextRequest(
            request_id=f"{self._envelope.id}-{index}",
            prompt_token_ids=prompt.token_ids,
            sampling=sampling_params(
                body,
                model.info,
                max_tokens=max_tokens,
                choice=choice,
                num_logprobs=body.logprobs,
                num_prompt_logprobs=(body.logprobs or 0) if scores_prompt else None,
                grammar=grammar,
                defaults=model.sampling_defaults,
            ),
            stop=body.stop_strings,
            include_stop_str_in_output=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            priority=self._intake.priority,
            with_tokens=body.logprobs is not None,
        )


def _choice_json(index: int, answer: _Choice, text: str, output: TextOutput) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None if answer.logprobs is None else answer.logprobs.take(),
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }


def demand_of(body: CompletionRequest, intake: Intake) -> Demand:
    """What the prompts may need; exact for token ids, guessed from the characters of texts."""
    prompts = split_prompts(body.prompt)
    if not prompts:
        raise BadRequest("The list of prompts is empty; expected at least one.", param="prompt")
    return Demand(
        num_sequences=len(prompts) * body.num_choices,
        num_prompt_tokens=sum(
            estimated_tokens(len(item)) if isinstance(item, str) else len(item) for item in prompts
        ),
        num_answer_tokens=_DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        num_choices=body.num_choices,
        priority=intake.priority,
        param="prompt" if len(prompts) > 1 else "n",
    )
