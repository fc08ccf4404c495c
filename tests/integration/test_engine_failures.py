"""What a damaged model or a dying engine does to the requests: each is answered, none hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from engines.base import EngineOptions
from engines.cpu.core import EngineCore
from engines.cpu.engine import CpuEngine
from engines.errors import EngineDead, GenerationFailed
from engines.request import GenerationRequest, SamplingParams
from tests.support.random_checkpoint import RandomCheckpoint, write_safetensors


def request(name: str = "r", **sampling: object) -> GenerationRequest:
    return GenerationRequest(name, (1, 5, 9), SamplingParams(**{"max_tokens": 8, **sampling}))


async def consume(engine: CpuEngine, generation: GenerationRequest) -> int:
    return len([output async for output in engine.generate(generation)])


async def test_logits_that_are_not_finite_fail_the_request_not_the_engine(tmp_path: Path) -> None:
    variant = RandomCheckpoint()
    directory = variant.write(tmp_path / "model")
    for name, tensor in variant.tensors.items():
        if name.endswith("weight_scale"):
            variant.tensors[name] = np.full_like(tensor, 254)  # 2^127: products overflow float32
    write_safetensors(directory / "model.safetensors", variant.tensors)
    engine = CpuEngine(EngineOptions(directory, check_integrity=True))
    await engine.start()
    try:
        for _ in range(2):
            with pytest.raises(GenerationFailed, match="NaN or infinite"):
                await consume(engine, request())
        with pytest.raises(GenerationFailed, match="NaN or infinite"):
            await consume(engine, request(num_prompt_logprobs=0, max_tokens=0))
        assert engine.stats().num_blocks_used == 0
    finally:
        await engine.close()


async def test_closing_is_no_death(golden: Path) -> None:
    engine = CpuEngine(EngineOptions(golden / "mistral-mxfp4-ct"))
    await engine.start()
    waiting = asyncio.create_task(engine.died())
    await engine.close()
    assert not waiting.done()
    waiting.cancel()


async def test_a_dying_engine_fails_what_runs_and_what_comes(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CpuEngine(EngineOptions(golden / "mistral-mxfp4-ct"))
    await engine.start()
    steps = 0
    step = EngineCore.step

    def failing_step(core: EngineCore) -> list:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise RuntimeError("a cosmic ray")
        return step(core)

    monkeypatch.setattr(EngineCore, "step", failing_step)
    try:
        results = await asyncio.gather(
            *(consume(engine, request(f"r{index}", ignore_eos=True)) for index in range(3)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [EngineDead] * 3
        with pytest.raises(EngineDead, match="cosmic ray"):
            await consume(engine, request("late"))
        await asyncio.wait_for(engine.abort("r0"), timeout=5)
        assert "cosmic ray" in await asyncio.wait_for(engine.died(), timeout=5)
        assert engine.stats().num_running == 0
    finally:
        await engine.close()
