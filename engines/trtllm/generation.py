"""One request's life inside TensorRT-LLM: one call of generate_async, or two, and how it is cut short."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from engines.errors import GenerationFailed, InvalidRequest
from engines.request import FinishReason, TokenOutput
from engines.trtllm.output_mapping import OutputReader
from engines.trtllm.runtime import Runtime
from engines.trtllm.sampling import Phase, SamplingPlan

_ABORTED = FinishReason.ABORT


class Generation:
    """Runs a SamplingPlan. Used from one event loop; `abort` may come at any time."""

    def __init__(self, runtime: Runtime, llm: Any, plan: SamplingPlan) -> None:
        self._runtime = runtime
        self._llm = llm
        self._plan = plan
        self._result: Any = None
        self._is_aborted = False

    def abort(self) -> None:
        """End it soon: the outputs end with FinishReason.ABORT once the runtime has let go of the request."""
        if not self._is_aborted:
            self._is_aborted = True
            if self._result is not None:
                self._result.abort()

    async def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        """The request's outputs; the last one has a finish reason.

        Raises InvalidRequest for what the runtime refuses, GenerationFailed for what it fails at, and
        anything else when the runtime itself is broken.
        """
        plan = self._plan
        generated: list[int] = []
        phase: Phase | None = plan.first()
        num_cached_tokens: int | None = None
        while phase is not None:
            last: TokenOutput | None = None
            async for raw in self._run(phase):
                if num_cached_tokens is None:
                    num_cached_tokens = raw.num_cached_tokens
                output = replace(raw, num_cached_tokens=num_cached_tokens)
                generated.extend(output.token_ids)
                if output.finish_reason is None:
                    yield output
                else:
                    last = output
            if last is None:
                raise GenerationFailed("TensorRT-LLM ended the request's stream without a reason")
            phase = None if last.finish_reason is not FinishReason.LENGTH else plan.second(tuple(generated))
            if phase is not None:
                last = replace(last, finish_reason=None)
            elif plan.discards_token:
                last = _without_tokens(last)
            yield last

    async def _run(self, phase: Phase) -> AsyncGenerator[TokenOutput, None]:
        if self._is_aborted:
            yield _nothing(self._plan)
            return
        try:
            self._result = self._submit(phase)
        except (ValueError, TypeError, self._runtime.request_error) as error:
            raise InvalidRequest(f"TensorRT-LLM refuses the request: {error}") from error
        reader = OutputReader(self._plan, wants_prompt_logprobs=_scores_prompt(phase))
        try:
            async for result in self._result:
                output = reader.read(result)
                if output is not None:
                    yield output
                    if output.finish_reason is not None:
                        return
        except self._runtime.request_error as error:
            raise GenerationFailed(f"TensorRT-LLM failed to generate: {error}") from error
        if self._is_aborted:
            yield _nothing(self._plan)

    def _submit(self, phase: Phase) -> Any:
        arguments: dict[str, Any] = {"streaming": self._plan.is_streamed}
        features = self._runtime.features
        if features.priority:
            arguments["priority"] = _runtime_priority(self._plan.request.priority)
        if features.cache_salt and _scores_prompt(phase):
            # Positions found in the prefix cache are not computed again and have no log-probabilities.
            arguments["cache_salt"] = uuid.uuid4().hex
        sampling = self._runtime.sampling_params(phase.arguments, phase.bias)
        return self._llm.generate_async(list(phase.prompt_token_ids), sampling_params=sampling, **arguments)


def _scores_prompt(phase: Phase) -> bool:
    return "prompt_logprobs" in phase.arguments or "return_context_logits" in phase.arguments


def _runtime_priority(priority: int) -> float:
    """Ours is unbounded and lower is sooner; the runtime's is 0 to 1, higher is sooner, 0.5 the usual one."""
    return 0.5 - 0.5 * priority / (1 + abs(priority))


def _without_tokens(last: TokenOutput) -> TokenOutput:
    """A prompt that was only scored has generated all of its no tokens."""
    reason = _ABORTED if last.finish_reason is _ABORTED else FinishReason.LENGTH
    logprobs = None if last.logprobs is None else ()
    return replace(last, token_ids=(), logprobs=logprobs, finish_reason=reason)


def _nothing(plan: SamplingPlan) -> TokenOutput:
    return TokenOutput(
        token_ids=(),
        logprobs=None if plan.request.sampling.num_logprobs is None else (),
        finish_reason=_ABORTED,
    )
