"""Every test of this folder runs once for each engine.

An engine joins by an entry in ENGINES. Each engine that a test makes must be idle when the test is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.base import Engine, EngineOptions
from engines.registry import create_engine
from tests.support.fake_tensorrt_llm import installed
from tests.support.generation import wait_until_idle
from tests.support.gpu_machines import B200

ENGINES = ("echo", "cpu", "trtllm")

# The release that has everything; what the others lack is tested in tests/unit/trtllm.
TENSORRT_LLM = "1.4.0rc1"

BuildEngine = Callable[..., Engine]
StartEngine = Callable[..., Awaitable[Engine]]


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def build_engine(engine_name: str, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BuildEngine]:
    """Constructs, but does not start, an engine with a small context; keywords override its options."""
    checkpoint = "mistral-mxfp4-ct"
    with contextlib.ExitStack() as stack:
        if engine_name == "trtllm":
            checkpoint = "mixtral-nvfp4-modelopt"  # it runs no dense MXFP4
            stack.enter_context(installed(TENSORRT_LLM))
            monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
        yield builder(engine_name, golden / checkpoint)


def builder(engine_name: str, checkpoint: Path) -> BuildEngine:
    defaults = EngineOptions(
        checkpoint=checkpoint,
        numerics="reference",
        max_model_len=256,
        max_num_batched_tokens=64,
        num_threads=1,
        check_integrity=True,
    )

    def build(**overrides: Any) -> Engine:
        return create_engine(engine_name, dataclasses.replace(defaults, **overrides))

    return build


@pytest.fixture
async def start_engine(build_engine: BuildEngine) -> AsyncIterator[StartEngine]:
    """Starts an engine; at the end of the test it must become idle by itself, and is closed."""
    engines: list[Engine] = []

    async def start(**overrides: Any) -> Engine:
        engine = build_engine(**overrides)
        await engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await wait_until_idle(engine)
        await engine.close()


@pytest.fixture
async def engine(start_engine: StartEngine) -> Engine:
    """A started engine with the default options."""
    return await start_engine()
