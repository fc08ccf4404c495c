"""Construct, start, close: in every order a caller may try."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import Engine, EngineStats
from engines.errors import CheckpointError, EngineDead, EngineUnavailable
from tests.contract.conftest import BuildEngine
from tests.support.generation import (
    collect,
    first_output,
    generate_ids,
    long_request,
    make_request,
    rest_of,
    wait_until,
)


async def test_info_states_facts(engine: Engine, engine_name: str) -> None:
    info = engine.info
    assert info.engine == engine_name
    assert info.vocab_size == 320
    assert info.max_model_len == 256
    assert info.eos_token_ids == {2}
    assert info.max_num_logprobs >= 20
    assert engine.stats().num_blocks_total == info.num_blocks


async def test_without_a_limit_the_context_is_the_models(build_engine: BuildEngine) -> None:
    engine = build_engine(max_model_len=None)
    await engine.start()
    assert engine.info.max_model_len == 512
    await engine.close()


async def test_before_start_nothing_is_served(build_engine: BuildEngine) -> None:
    engine = build_engine()
    assert engine.stats() == EngineStats()
    with pytest.raises(EngineUnavailable, match="not been started"):
        await collect(engine, make_request())
    await engine.close()


async def test_close_without_start(build_engine: BuildEngine) -> None:
    await build_engine().close()


async def test_close_twice_and_then_nothing_is_served(build_engine: BuildEngine) -> None:
    engine = build_engine()
    await engine.start()
    assert len(await collect(engine, make_request(max_tokens=1))) == 1
    await engine.close()
    await engine.close()
    with pytest.raises(EngineDead, match="closed"):
        await collect(engine, make_request())
    await engine.abort("nobody")


async def test_close_ends_what_runs_and_what_waits_with_engine_dead(build_engine: BuildEngine) -> None:
    engine = build_engine(max_num_seqs=1)
    await engine.start()
    running = engine.generate(long_request(engine))
    await first_output(running)
    waiting = asyncio.create_task(collect(engine, long_request(engine)))
    await wait_until(lambda: engine.stats().num_waiting == 1)
    await engine.close()
    with pytest.raises(EngineDead, match="closed"):
        await rest_of(running)
    with pytest.raises(EngineDead, match="closed"):
        await waiting
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)


async def test_a_stream_can_be_closed_after_the_engine(build_engine: BuildEngine) -> None:
    engine = build_engine()
    await engine.start()
    stream = engine.generate(long_request(engine))
    await first_output(stream)
    await engine.close()
    await stream.aclose()


async def test_two_engines_live_side_by_side(build_engine: BuildEngine) -> None:
    first, second = build_engine(), build_engine()
    await first.start()
    await second.start()
    expected = await generate_ids(first, make_request(request_id="same"))
    await first.close()
    assert await generate_ids(second, make_request(request_id="same")) == expected
    await second.close()


@pytest.mark.parametrize("config", [None, "", "[]", "{", "\x00", '{"vocab_size": "many"}'])
async def test_a_bad_checkpoint_fails_the_start_and_close_is_fine(
    build_engine: BuildEngine, tmp_path: Path, config: str | None
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    engine = build_engine(checkpoint=tmp_path)
    with pytest.raises(CheckpointError):
        await engine.start()
    with pytest.raises(EngineUnavailable):
        await collect(engine, make_request())
    await engine.close()


async def test_a_missing_checkpoint_fails_the_start(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(checkpoint=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        await engine.start()
    await engine.close()
