"""The shape that both generating endpoints share: admission, preparation, outputs, delivery."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.requests import Request

from service.admission.demand import Demand, Flow
from service.admission.ticket import Ticket
from service.admission.time_limits import REQUEST_TIMEOUT_HEADER, TimeLimits, client_seconds
from service.choices import UsageTally, generate_choices
from service.generation import TextOutput, TextRequest
from service.protocol.generation import GenerationFields
from service.request_account import GenerationFacts, RequestAccount, request_account
from service.routes.delivery import Envelope
from service.sse import FrameTemplate, frame
from service.state import LoadedModel, ServiceState, service_state
from service.structured_output import blaming_the_field

# Reserved for an answer whose length the client leaves open; the whole context would keep everybody else out.
ASSUMED_ANSWER_TOKENS = 1024

_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Intake:
    """What is known of a request besides its body."""

    flow: Flow
    priority: int
    limits: TimeLimits
    account: RequestAccount


def take_in(request: Request, body: GenerationFields) -> Intake:
    """Who asks, how urgent it is, how long it may take. Raises BadRequest for a malformed time limit."""
    state = service_state(request)
    caller = getattr(request.state, "caller", None)
    priority = body.priority or 0
    if caller is not None:
        # A request may stand back behind its key's class, not push in front of it.
        priority = caller.priority if body.priority is None else max(caller.priority, body.priority)
    seconds = client_seconds(request.headers.get(REQUEST_TIMEOUT_HEADER), body.timeout)
    return Intake(
        flow=Flow() if caller is None else caller.flow,
        priority=priority,
        limits=TimeLimits(state.timeouts, client_seconds=seconds),
        account=request_account(request),
    )


def estimated_tokens(num_characters: int) -> int:
    """A guess that needs no tokenizer; for most texts and vocabularies on the high side."""
    return num_characters // _CHARACTERS_PER_TOKEN + 1


class Answer(ABC):
    """One request's way to its answer. Use `frames` or `whole`, once.

    `operation` is its name in OpenTelemetry's conventions.
    """

    operation: ClassVar[str]

    def __init__(
        self, state: ServiceState, body: GenerationFields, intake: Intake, envelope: Envelope, demand: Demand
    ) -> None:
        self._state = state
        self._body = body
        self._intake = intake
        self._envelope = envelope
        self._demand = demand
        self._tally = UsageTally(0, body.num_choices)
        self._account = intake.account
        self._answers_to_keep: dict[int, list[str]] | None = None
        self._describe()

    def _describe(self) -> None:
        """Note for log and trace what was asked; the prompt only where the operator wants that."""
        body, settings = self._body, self._state.settings
        facts = GenerationFacts(
            operation=self.operation,
            model=body.model,
            response_id=self._envelope.id,
            num_choices=self._demand.num_sequences,
            is_streamed=bool(body.stream),
            max_tokens=self._demand.num_answer_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
        )
        if settings.trace_prompts or settings.log_prompts:
            facts.prompt = self._prompt_json()
            facts.answers = self._answers_to_keep = {}
        self._account.generation = facts

    @abstractmethod
    def _prompt_json(self) -> object:
        """The prompt as the client sent it, for an operator who wants to see prompts."""

    @abstractmethod
    async def _prepare(self, model: LoadedModel) -> list[TextRequest]:
        """Template and tokenizer: the sequences to generate, one for each choice."""

    @abstractmethod
    def _take(self, index: int, output: TextOutput) -> None:
        """Add an output to the choice with this index."""

    @abstractmethod
    def _choices(self) -> list[dict[str, Any]]:
        """All choices, complete."""

    @abstractmethod
    def _chunks(self, index: int, output: TextOutput) -> Iterable[dict[str, Any]]:
        """What a stream says about an output: the choices of none, one or more chunks."""

    @abstractmethod
    def _adds_text_only(self, index: int) -> bool:
        """Whether all further outputs for this choice but its last say nothing in a stream but their text."""

    @abstractmethod
    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        """The choice of a chunk that says nothing but a text."""

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        async with self._outputs() as outputs:
            async for index, output in outputs:
                self._note(index, output)
                self._take(index, output)
        payload = self._envelope.as_json()
        payload["choices"] = self._choices()
        payload["usage"] = self._usage()
        return payload

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, then usage if asked for."""
        templates: dict[int, FrameTemplate] = {}
        keeps_answers = self._answers_to_keep is not None
        async with self._outputs() as outputs:
            async for index, output in outputs:
                if keeps_answers or output.finish_reason is not None:
                    self._note(index, output)
                template = templates.get(index)
                if template is not None and output.finish_reason is None:
                    if output.text:
                        yield template.fill(output.text)
                    continue
                # One piece for one output, so that the role does not leave without the first text.
                data = b"".join(frame(self._chunk_payload(choice)) for choice in self._chunks(index, output))
                if data:
                    yield data
                if template is None and self._adds_text_only(index):
                    templates[index] = self._template(index)
        if self._body.include_usage:
            payload = self._envelope.as_json()
            payload["choices"] = []
            payload["usage"] = self._usage()
            yield frame(payload)

    def _usage(self) -> dict[str, Any]:
        return {**self._tally.as_json(), "timing": self._account.seconds()}

    def _chunk_payload(self, choice: dict[str, Any]) -> dict[str, Any]:
        payload = self._envelope.as_json()
        payload["choices"] = [choice]
        if self._body.include_usage:
            payload["usage"] = None
        return payload

    def _template(self, index: int) -> FrameTemplate:
        return FrameTemplate(lambda text: self._chunk_payload(self._text_choice(index, text)))

    @asynccontextmanager
    async def _outputs(self) -> AsyncIterator[AsyncGenerator[tuple[int, TextOutput], None]]:
        """Admission, preparation, generation; a place is held from the first step to the last.

        The outputs come as they are, without another generator around them: each costs every token something.
        """
        state, intake = self._state, self._intake
        model = state.ready_model()
        with (
            state.admission.reserve(intake.flow, self._demand, intake.limits) as ticket,
            blaming_the_field(self._body),
        ):
            self._account.tokenize_began = began = time.perf_counter()
            requests = await self._prepare(model)
            self._account.tokenize_seconds = time.perf_counter() - began
            self._settle(ticket, requests)
            async with aclosing(generate_choices(state, model, requests, ticket, self._account)) as outputs:
                yield outputs

    def _note(self, index: int, output: TextOutput) -> None:
        """What log, trace and usage say about an output."""
        if self._answers_to_keep is not None:
            self._answers_to_keep.setdefault(index, []).append(output.text)
        if output.finish_reason is not None:
            self._tally.end(index, output, self._account.num_generated_tokens)
            self._account.num_cached_tokens = self._tally.num_cached_tokens

    def _settle(self, ticket: Ticket, requests: list[TextRequest]) -> None:
        lengths = [len(request.prompt_token_ids) for request in requests]
        self._tally.num_prompt_tokens = sum(lengths[:: self._body.num_choices])
        self._account.num_prompt_tokens = self._tally.num_prompt_tokens
        ticket.settle_prompts(lengths)
