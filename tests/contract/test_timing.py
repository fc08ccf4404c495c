"""Where a sequence's time went, as every engine tells it."""

from __future__ import annotations

import asyncio
import time

from engines.base import Engine
from engines.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput


async def _outputs(engine: Engine, request: GenerationRequest) -> list[TokenOutput]:
    return [output async for output in engine.generate(request)]


async def test_first_and_last_output_carry_the_timing(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    began = time.perf_counter()
    outputs = await _outputs(engine, GenerationRequest("r", tuple(range(3, 11)), sampling))
    elapsed = time.perf_counter() - began
    first, last = outputs[0].timing, outputs[-1].timing
    assert first is not None
    assert last is not None
    assert all(output.timing is None for output in outputs[1:-1])
    assert min(last.queue_seconds, last.prefill_seconds, last.decode_seconds) >= 0
    assert last.decode_seconds > 0
    assert 0 < last.queue_seconds + last.prefill_seconds + last.decode_seconds <= elapsed
    if len(outputs) > 1:
        assert (first.queue_seconds, first.prefill_seconds) == (last.queue_seconds, last.prefill_seconds)


async def test_an_aborted_sequence_has_its_timing_too(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    stream = engine.generate(GenerationRequest("r", (3, 4, 5), sampling))
    await anext(stream)
    await engine.abort("r")
    rest = [output async for output in stream]
    assert rest[-1].finish_reason is FinishReason.ABORT
    assert rest[-1].timing is not None
    assert rest[-1].timing.prefill_seconds >= 0
    await asyncio.sleep(0)
