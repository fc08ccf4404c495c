"""Many streams at once on the demo checkpoint: the same text as alone, and nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import EngineOptions
from engines.cpu.engine import CpuEngine
from engines.request import GenerationRequest, SamplingParams
from examples.demo_model.make_demo import make_demo

NUM_STREAMS = 64


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "checkpoint"
    make_demo(directory)
    return directory


def request(index: int) -> GenerationRequest:
    """Prompts of 3 to 130 tokens; every fourth begins like the one before, to meet the prefix cache."""
    length = 3 + 7 * index % 128
    seed = index - 1 if index % 4 == 3 else index
    prompt = tuple(3 + (seed * 131 + 17 * position) % 2000 for position in range(length))
    sampling = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    return GenerationRequest(f"stream-{index}", prompt, sampling)


async def tokens(engine: CpuEngine, generation: GenerationRequest) -> list[int]:
    return [token_id async for output in engine.generate(generation) for token_id in output.token_ids]


@pytest.mark.parametrize("numerics", ["fast", "reference"])
@pytest.mark.parametrize("num_blocks", [400, 24], ids=["roomy", "preempting"])
async def test_64_streams_give_the_text_each_gives_alone(demo: Path, numerics: str, num_blocks: int) -> None:
    alone_engine = CpuEngine(EngineOptions(demo, numerics=numerics, prefix_caching=False))
    await alone_engine.start()
    try:
        alone = [await tokens(alone_engine, request(index)) for index in range(NUM_STREAMS)]
    finally:
        await alone_engine.close()
    block_bytes = 16 * 2 * 4 * 4 * 32 * (2 if numerics == "fast" else 4)
    engine = CpuEngine(
        EngineOptions(
            demo,
            numerics=numerics,
            max_model_len=256,
            kv_cache_memory_bytes=num_blocks * block_bytes,
            max_num_batched_tokens=96,
            check_integrity=True,
        )
    )
    await engine.start()
    try:
        assert engine.info.num_blocks == num_blocks
        together = await asyncio.gather(*(tokens(engine, request(index)) for index in range(NUM_STREAMS)))
        stats = engine.stats()
    finally:
        await engine.close()
    assert together == alone
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
    assert stats.num_cached_prompt_tokens_total > 0
    assert (stats.num_preemptions_total > 0) == (num_blocks == 24)
