"""The ways a request ends early, and what is left of it: nothing."""

from __future__ import annotations

import asyncio

import pytest

from engines.base import Engine, EngineStats
from engines.request import FinishReason
from tests.contract.conftest import StartEngine
from tests.support.generation import (
    collect,
    first_output,
    generate_ids,
    joined,
    long_request,
    make_request,
    rest_of,
    wait_until,
    wait_until_idle,
)


def gauges(stats: EngineStats) -> tuple[int, int, int]:
    return stats.num_running, stats.num_waiting, stats.num_blocks_used


async def test_closing_the_stream_frees_everything(engine: Engine) -> None:
    stream = engine.generate(long_request(engine))
    await first_output(stream)
    assert engine.stats().num_running == 1
    await stream.aclose()
    await wait_until_idle(engine)


async def test_cancelling_the_consumer_frees_everything(engine: Engine) -> None:
    has_begun = asyncio.Event()

    async def consume() -> None:
        async for _ in engine.generate(long_request(engine)):
            has_begun.set()

    task = asyncio.create_task(consume())
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_idle(engine)


async def test_abort_ends_the_stream_with_a_last_output(engine: Engine) -> None:
    expected = await generate_ids(engine, long_request(engine))
    request = long_request(engine)
    stream = engine.generate(request)
    outputs = [await first_output(stream)]
    await engine.abort(request.request_id)
    assert gauges(engine.stats()) == (0, 0, 0)
    outputs += await rest_of(stream)
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is FinishReason.ABORT
    tokens = joined(outputs)
    assert 1 <= len(tokens) < len(expected)
    assert tokens == expected[: len(tokens)]


async def test_abort_keeps_tokens_and_logprobs_in_step(engine: Engine) -> None:
    request = long_request(engine, num_logprobs=1)
    stream = engine.generate(request)
    outputs = [await first_output(stream)]
    await engine.abort(request.request_id)
    outputs += await rest_of(stream)
    for output in outputs:
        assert len(output.logprobs or ()) == len(output.token_ids)


async def test_abort_reaches_a_request_that_waits(start_engine: StartEngine) -> None:
    engine = await start_engine(max_num_seqs=1)
    running = engine.generate(long_request(engine))
    await first_output(running)
    request = long_request(engine)
    waiting = asyncio.create_task(collect(engine, request))
    await wait_until(lambda: engine.stats().num_waiting == 1)
    await engine.abort(request.request_id)
    stats = engine.stats()
    assert stats.num_waiting == 0
    assert stats.num_prompt_tokens_total == 8  # those of the running one
    outputs = await waiting
    assert joined(outputs) == []
    assert outputs[-1].finish_reason is FinishReason.ABORT
    await running.aclose()


async def test_abort_of_one_that_waits_lets_no_other_run(start_engine: StartEngine) -> None:
    engine = await start_engine(max_num_seqs=1)
    running = engine.generate(long_request(engine))
    await first_output(running)
    before = asyncio.create_task(generate_ids(engine, make_request()))
    await wait_until(lambda: engine.stats().num_waiting == 1)
    request = make_request()
    behind = asyncio.create_task(collect(engine, request))
    await wait_until(lambda: engine.stats().num_waiting == 2)
    await engine.abort(request.request_id)
    assert gauges(engine.stats())[:2] == (1, 1)
    assert (await behind)[-1].finish_reason is FinishReason.ABORT
    await running.aclose()
    assert len(await before) == 8


async def test_cancelling_a_request_that_waits_leaves_the_queue_intact(start_engine: StartEngine) -> None:
    engine = await start_engine(max_num_seqs=1)
    running = engine.generate(long_request(engine))
    await first_output(running)
    cancelled = asyncio.create_task(collect(engine, make_request()))
    await wait_until(lambda: engine.stats().num_waiting == 1)
    behind = asyncio.create_task(generate_ids(engine, make_request()))
    await wait_until(lambda: engine.stats().num_waiting == 2)
    cancelled.cancel()
    await running.aclose()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert len(await behind) == 8


async def test_abort_of_an_unknown_id_is_ignored(engine: Engine) -> None:
    await engine.abort("nobody")
    assert len(await generate_ids(engine, make_request())) == 8


async def test_abort_of_a_finished_id_is_ignored(engine: Engine) -> None:
    request = make_request()
    await collect(engine, request)
    await engine.abort(request.request_id)
    assert len(await generate_ids(engine, request)) == 8


async def test_abort_twice(engine: Engine) -> None:
    request = long_request(engine)
    stream = engine.generate(request)
    await first_output(stream)
    await asyncio.gather(engine.abort(request.request_id), engine.abort(request.request_id))
    outputs = await rest_of(stream)
    assert [output.finish_reason for output in outputs].count(FinishReason.ABORT) == 1


@pytest.mark.parametrize("ending", ["aclose", "abort"])
async def test_an_id_can_be_used_again_at_once(engine: Engine, ending: str) -> None:
    expected = await generate_ids(engine, make_request(max_tokens=30))
    for i in range(60):  # at many moments, to meet an engine in the middle of a step
        stream = engine.generate(long_request(engine, request_id="again"))
        await first_output(stream)
        for _ in range(i % 20):
            await asyncio.sleep(0)
        if ending == "abort":
            await engine.abort("again")
        await stream.aclose()
        outputs = await collect(engine, make_request(max_tokens=30, request_id="again"))
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert joined(outputs) == expected


async def test_the_last_output_leaves_nothing_behind_even_if_the_stream_stays_open(engine: Engine) -> None:
    stream = engine.generate(make_request())
    while (await first_output(stream)).finish_reason is None:
        pass
    await wait_until_idle(engine)
    await stream.aclose()


async def test_a_stream_that_is_never_read_starts_nothing(engine: Engine) -> None:
    stream = engine.generate(long_request(engine))
    assert gauges(engine.stats()) == (0, 0, 0)
    await stream.aclose()
    assert gauges(engine.stats()) == (0, 0, 0)


async def test_others_are_left_alone(engine: Engine) -> None:
    expected = await generate_ids(engine, make_request(max_tokens=60))
    stays = asyncio.create_task(generate_ids(engine, make_request(max_tokens=60)))
    for _ in range(4):
        stream = engine.generate(long_request(engine))
        await first_output(stream)
        await stream.aclose()
    assert await stays == expected
