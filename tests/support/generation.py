"""Driving an engine from a test: requests with short names, and collecting what they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from itertools import count
from typing import Any

from engines.base import Engine
from engines.request import GenerationRequest, SamplingParams, TokenOutput

# Long enough for a slow machine; reached only by a test that fails.
TIMEOUT_SECONDS = 60.0

_numbers = count()


def make_prompt(num_tokens: int, salt: int = 0) -> tuple[int, ...]:
    """`num_tokens` ordinary token ids (3 to 319), unlike those of another `salt`."""
    return tuple(3 + (salt * 7919 + i * i * 31 + i * 17) % 317 for i in range(num_tokens))


def make_request(
    prompt: Iterable[int] = make_prompt(8),
    *,
    request_id: str | None = None,
    priority: int = 0,
    **sampling: Any,
) -> GenerationRequest:
    """A request under a fresh id: greedy, 8 tokens, end-of-sequence ignored, unless `sampling` differs."""
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling})
    return GenerationRequest(request_id or f"request-{next(_numbers)}", tuple(prompt), params, priority)


def long_request(engine: Engine, **sampling: Any) -> GenerationRequest:
    """A request that runs until the context is full."""
    return make_request(**{"max_tokens": engine.info.max_model_len, **sampling})


async def collect(engine: Engine, request: GenerationRequest) -> list[TokenOutput]:
    """All outputs, to the end of the stream."""
    return [output async for output in engine.generate(request)]


def joined(outputs: Iterable[TokenOutput]) -> list[int]:
    """The token ids of all outputs."""
    return [token_id for output in outputs for token_id in output.token_ids]


async def generate_ids(engine: Engine, request: GenerationRequest) -> list[int]:
    """All token ids the request is answered."""
    return joined(await collect(engine, request))


async def first_output(stream: AsyncGenerator[TokenOutput, None]) -> TokenOutput:
    """The next output, within the time limit."""
    return await asyncio.wait_for(stream.__anext__(), TIMEOUT_SECONDS)


async def rest_of(stream: AsyncGenerator[TokenOutput, None]) -> list[TokenOutput]:
    """All outputs that are still to come."""
    return [output async for output in stream]


async def wait_until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition` holds; TimeoutError when it never does."""

    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - `stats` offers no event to wait for
            await asyncio.sleep(0)

    await asyncio.wait_for(turn(), TIMEOUT_SECONDS)


async def wait_until_idle(engine: Engine) -> None:
    """Wait until no request runs or waits and no KV block is held."""

    def is_idle() -> bool:
        stats = engine.stats()
        return (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)

    await wait_until(is_idle)
