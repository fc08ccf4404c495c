"""A loaded model proves itself before anybody is answered: a warm-up, then prompts with known answers."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from engines.errors import StartFailed
from engines.request import GenerationRequest, SamplingParams, TokenOutput
from engines.trtllm.canary import canary_request, check_canaries, mismatch
from engines.trtllm.generation import Generation
from engines.trtllm.sampling import plan_sampling
from engines.trtllm.startup import Prepared

_logger = logging.getLogger(__name__)
_WARM_UP_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Requests of our own to `llm`, each of which may take `timeout_seconds`."""

    prepared: Prepared
    llm: Any
    timeout_seconds: float

    async def warm_up(self) -> None:
        """One answer before anybody waits for it: kernels are chosen and compiled, faults come to light.

        Raises StartFailed.
        """
        sampling = SamplingParams(max_tokens=_WARM_UP_TOKENS, temperature=0.0, ignore_eos=True)
        await self._answer(GenerationRequest("nybble-warm-up", (0,), sampling))

    async def check_canaries(self) -> None:
        """Ask what the build's manifest knows the answers to. Raises StartFailed when one is wrong."""
        manifest = self.prepared.manifest
        if manifest is None or not manifest.canaries:
            return
        with_logprobs = self.prepared.runtime.features.logprobs
        mismatches = [
            mismatch(canary, await self._answer(canary_request(index, canary, with_logprobs=with_logprobs)))
            for index, canary in enumerate(manifest.canaries)
        ]
        check_canaries(mismatches)
        _logger.info("all %d canary prompts are answered as the build expects", len(mismatches))

    async def _answer(self, request: GenerationRequest) -> list[TokenOutput]:
        prepared = self.prepared
        plan = plan_sampling(request, prepared.facts, prepared.limits, prepared.runtime.features)
        generation = Generation(prepared.runtime, self.llm, plan)

        async def collect() -> list[TokenOutput]:
            return [output async for output in generation.outputs()]

        try:
            return await asyncio.wait_for(collect(), self.timeout_seconds)
        except asyncio.TimeoutError:
            raise StartFailed(
                "TensorRT-LLM has loaded the model but did not answer a test prompt in "
                f"{self.timeout_seconds:g} s"
            ) from None
        except Exception as error:
            raise StartFailed(
                "TensorRT-LLM has loaded the model but fails at a test prompt: "
                f"{type(error).__name__}: {error}"
            ) from error
