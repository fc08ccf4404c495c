"""The echo engine does wrong what it is told to do wrong, and nothing else."""

from __future__ import annotations

import asyncio
import time

import pytest

from engines.base import EngineOptions
from engines.echo import EchoEngine
from engines.echo_faults import EchoFaults
from engines.errors import EngineDead, StartFailed
from engines.request import FinishReason
from tests.support.generation import (
    collect,
    first_output,
    generate_ids,
    make_prompt,
    make_request,
    wait_until,
    wait_until_idle,
)


async def started(faults: str, **options: object) -> EchoEngine:
    engine = EchoEngine(EngineOptions(echo_faults=faults, **options))  # type: ignore[arg-type]
    await engine.start()
    return engine


def test_faults_are_read_from_text() -> None:
    assert EchoFaults.parse("") == EchoFaults()
    assert EchoFaults.parse(" die_after_tokens = 5, step_seconds=0.25,") == EchoFaults(
        step_seconds=0.25, die_after_tokens=5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("die_after_token=5", "did you mean 'die_after_tokens'"),
        ("explode=1", "expected one of: step_seconds"),
        ("hang_seconds", "hang_seconds is ''; expected a number of seconds"),
        ("hang_seconds=inf", "hang_seconds is 'inf'"),
        ("hang_seconds=nan", "hang_seconds is 'nan'"),
        ("die_after_tokens=-1", "expected a whole number, 0 or more"),
        ("die_after_tokens=1.5", "expected a whole number"),
    ],
)
async def test_what_is_no_fault_is_refused(text: str, message: str) -> None:
    with pytest.raises(StartFailed, match=message):
        await started(text)


async def test_it_dies_once_so_many_tokens_are_out() -> None:
    engine = await started("die_after_tokens=5", max_num_seqs=1)
    waiting = asyncio.create_task(collect(engine, make_request()))
    with pytest.raises(EngineDead, match="told to die after 5 tokens"):
        await generate_ids(engine, make_request(max_tokens=100))
    assert engine.stats().num_generated_tokens_total == 5
    with pytest.raises(EngineDead, match="told to die"):
        await waiting
    assert "told to die" in await asyncio.wait_for(engine.died(), 5)
    with pytest.raises(EngineDead, match="told to die"):
        await collect(engine, make_request())
    assert engine.stats().num_running == 0


async def test_it_dies_when_a_request_comes_after_so_many() -> None:
    engine = await started("die_after_requests=2")
    for _ in range(2):
        assert len(await generate_ids(engine, make_request())) == 8
    with pytest.raises(EngineDead, match="after 2 requests"):
        await generate_ids(engine, make_request())


async def test_a_hang_makes_no_progress_and_can_be_left() -> None:
    engine = await started("hang_after_tokens=3")
    request = make_request(max_tokens=100)
    answer = asyncio.create_task(collect(engine, request))
    await wait_until(lambda: engine.stats().num_generated_tokens_total == 3)
    other = asyncio.create_task(collect(engine, make_request()))
    await wait_until(lambda: engine.stats().num_running == 2)
    before = engine.stats()
    for _ in range(100):
        await asyncio.sleep(0)
    assert engine.stats() == before
    await engine.abort(request.request_id)
    assert (await answer)[-1].finish_reason is FinishReason.ABORT
    other.cancel()
    await wait_until_idle(engine)


async def test_a_hang_may_end_by_itself() -> None:
    engine = await started("hang_after_requests=1,hang_seconds=0.1")
    assert len(await generate_ids(engine, make_request())) == 8
    begun = time.monotonic()
    assert len(await generate_ids(engine, make_request())) == 8
    assert time.monotonic() - begun >= 0.1
    assert len(await generate_ids(engine, make_request())) == 8


async def test_a_block_stops_the_loop() -> None:
    engine = await started("block_after_tokens=2,block_seconds=0.2")
    gaps = []

    async def beat() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0)
            gaps.append(time.monotonic() - begun)

    beating = asyncio.create_task(beat())
    assert len(await generate_ids(engine, make_request())) == 8
    beating.cancel()
    assert max(gaps) >= 0.2


async def test_loading_has_progress_and_an_end() -> None:
    engine = EchoEngine(EngineOptions(echo_faults="start_seconds=0.2"))
    assert engine.load_progress() is None
    starting = asyncio.create_task(engine.start())
    fractions = []
    while not starting.done():
        await asyncio.sleep(0.01)
        if (progress := engine.load_progress()) is not None:
            assert progress.fraction is not None
            assert progress.eta_seconds is not None
            assert progress.phase_seconds + progress.eta_seconds == pytest.approx(0.2)
            fractions.append(progress.fraction)
    await starting
    assert len(fractions) > 3
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.5 < fractions[-1] <= 1
    assert engine.load_progress() is None


async def test_a_start_that_fails() -> None:
    with pytest.raises(StartFailed, match="told to fail"):
        await started("start_fails=1")


async def test_a_slow_prefill_is_progress() -> None:
    engine = await started("prefill_step_seconds=0.001", max_num_batched_tokens=10)
    assert len(await generate_ids(engine, make_request(make_prompt(95), max_tokens=1))) == 1
    assert engine.stats().num_steps_total == 10 + 1


async def test_a_reader_who_pauses_is_no_hang() -> None:
    engine = await started("")
    stream = engine.generate(make_request(max_tokens=100))
    await first_output(stream)
    first = engine.stats().num_steps_total
    assert engine.stats().num_steps_total > first
    await stream.aclose()


async def test_a_slow_close() -> None:
    engine = await started("close_seconds=0.1,hang_after_requests=0")
    stream = engine.generate(make_request(max_tokens=100))
    await first_output(stream)
    begun = time.monotonic()
    await engine.close()
    assert time.monotonic() - begun >= 0.1
    with pytest.raises(EngineDead, match="closed"):
        await first_output(stream)
