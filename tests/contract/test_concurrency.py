"""Many requests at once: the same tokens as alone, within the engine's limits."""

from __future__ import annotations

import asyncio

import pytest

from engines.base import Engine
from tests.contract.conftest import StartEngine
from tests.support.generation import (
    first_output,
    generate_ids,
    joined,
    long_request,
    make_prompt,
    make_request,
    rest_of,
    wait_until,
)


@pytest.mark.parametrize("kv_cache_memory_bytes", [None, 512 * 1024])
async def test_64_at_once_get_the_tokens_each_gets_alone(
    start_engine: StartEngine, kv_cache_memory_bytes: int | None
) -> None:
    """With the small cache, sequences have to be preempted and computed again."""
    engine = await start_engine(kv_cache_memory_bytes=kv_cache_memory_bytes)
    prompts = [make_prompt(2 + 5 * (i % 13), salt=i % 40) for i in range(64)]
    budgets = [4 + i % 21 for i in range(64)]

    def request(i: int) -> asyncio.Future[list[int]]:
        return asyncio.ensure_future(generate_ids(engine, make_request(prompts[i], max_tokens=budgets[i])))

    alone = [await request(i) for i in range(64)]
    together = await asyncio.gather(*(request(i) for i in range(64)))
    assert together == alone


async def test_a_slow_consumer_loses_nothing(engine: Engine) -> None:
    expected = await generate_ids(engine, make_request(max_tokens=50, num_logprobs=0))
    stream = engine.generate(make_request(max_tokens=50, num_logprobs=0))
    outputs = [await first_output(stream)]
    for _ in range(3):  # time passes, measured in work done for others
        await generate_ids(engine, make_request(max_tokens=50))
    outputs += await rest_of(stream)
    assert joined(outputs) == expected
    assert sum(len(output.logprobs or ()) for output in outputs) == 50
    assert [output.finish_reason is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]


async def test_a_consumer_that_never_waits_does_not_stop_the_others(engine: Engine) -> None:
    """Short requests finish while a long one is being read as fast as it comes."""
    is_done = False

    async def read_long() -> bool:
        async for _ in engine.generate(long_request(engine)):
            if is_done:
                return True
        return False

    reader = asyncio.create_task(read_long())
    await wait_until(lambda: engine.stats().num_running == 1)
    await generate_ids(engine, make_request(max_tokens=2))
    is_done = True
    assert await reader


async def test_no_more_than_max_num_seqs_run_and_the_rest_wait(start_engine: StartEngine) -> None:
    engine = await start_engine(max_num_seqs=2)
    assert engine.info.max_num_seqs == 2
    tasks = [asyncio.create_task(generate_ids(engine, long_request(engine))) for _ in range(5)]
    await wait_until(lambda: engine.stats().num_running == 2 and engine.stats().num_waiting == 3)
    results = await asyncio.gather(*tasks)
    assert all(result == results[0] for result in results)
    assert len(results[0]) == engine.info.max_model_len - 8


async def test_equal_priorities_are_served_in_order_of_arrival(start_engine: StartEngine) -> None:
    engine = await start_engine(max_num_seqs=1)
    finished: list[int] = []

    async def serve(number: int) -> None:
        await generate_ids(engine, make_request(max_tokens=5))
        finished.append(number)

    await asyncio.gather(*(serve(number) for number in range(6)))
    assert finished == [0, 1, 2, 3, 4, 5]
