"""What `nybble build` makes, started by the engine over TensorRT-LLM's fake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import EngineOptions
from engines.trtllm.build import build
from engines.trtllm.build_plan import make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.errors import StaleEngine
from engines.trtllm.machine import Machine
from engines.trtllm.startup import prepare
from tests.support.fake_tensorrt_llm import installed
from tests.support.gpu_machines import B200

RELEASE = "1.4.0rc1"


@contextmanager
def machine_with(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(RELEASE), monkeypatch.context() as patch:
        patch.setattr("engines.trtllm.startup.detect_machine", lambda: machine)
        yield


@pytest.fixture
def built(golden: Path, tmp_path: Path) -> Path:
    """Prepared for a B200 on a machine that has nothing."""
    engine = tmp_path / "engine"
    request = BuildRequest(
        golden / "mixtral-nvfp4-modelopt",
        engine,
        target="b200",
        max_batch_size=4,
        max_seq_len=200,
        tensorrt_llm_version=RELEASE,
        num_canaries=0,
    )
    build(make_build_plan(request, Machine()), Machine())
    return engine


def test_the_builds_limits_and_options_reach_the_runtime(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_with(replace(B200, tensorrt_llm_version=RELEASE), monkeypatch):
        prepared = prepare(EngineOptions(checkpoint=built))
    arguments = prepared.arguments
    assert arguments["model"] == str(built)
    assert arguments["max_batch_size"] == 4
    assert arguments["moe_config"].backend == "CUTLASS"
    assert arguments["cuda_graph_config"].enable_padding is True
    assert prepared.manifest is not None
    assert prepared.manifest.options.max_seq_len == 200 >= prepared.limits.max_model_len


def test_it_does_not_start_elsewhere(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spark = replace(B200, tensorrt_llm_version=RELEASE, gpus=tuple(replace(gpu, sm=121) for gpu in B200.gpus))
    with machine_with(spark, monkeypatch), pytest.raises(StaleEngine, match=r"made for b200 \(SM 100\)"):
        prepare(EngineOptions(checkpoint=built))
