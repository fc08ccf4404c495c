"""Alone, rank 0 of several machines, or one of many servers by mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import EngineOptions
from engines.errors import StartFailed
from engines.trtllm.launch import ALONE, Launch, detect_launch, gpus_per_node
from engines.trtllm.memory_guard import RUNTIME_RESERVE_BYTES, kv_cache_budget
from engines.trtllm.startup import prepare
from tests.support.fake_tensorrt_llm import installed
from tests.support.gpu_machines import B200, GB10
from tests.unit.trtllm.test_built_directories import MANIFEST, engine_directory, prepared_directory
from tests.unit.trtllm.test_engine_parts import FACTS

LEADER = {"TLLM_SPAWN_PROXY_PROCESS": "1", "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR": "tcp://127.0.0.1:10012"}
SEVERAL = Launch(is_multi_node=True)


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_one_of_many_processes_does_not_serve(name: str) -> None:
    with pytest.raises(StartFailed, match=rf"{name} is 4: .*trtllm-llmapi-launch nybble serve"):
        detect_launch({name: "4"})
    assert detect_launch({name: "1"}) == ALONE
    assert detect_launch({}) == ALONE


def test_the_leader_is_known_by_what_the_script_sets() -> None:
    assert detect_launch(LEADER) == SEVERAL
    assert detect_launch({**LEADER, "TLLM_SPAWN_PROXY_PROCESS": "0"}) == ALONE


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"])
def test_a_leader_has_no_other_rank(name: str) -> None:
    with pytest.raises(StartFailed, match=rf"{name} is 3: only rank 0 may serve"):
        detect_launch({**LEADER, name: "3"})
    assert detect_launch({**LEADER, name: "0"}) == SEVERAL


def test_a_leader_without_an_address_is_none() -> None:
    with pytest.raises(StartFailed, match="IPC_ADDR is not set"):
        detect_launch({"TLLM_SPAWN_PROXY_PROCESS": "1"})


@pytest.mark.parametrize(
    ("tensor", "pipeline", "asked", "local", "launch", "expected"),
    [
        (1, 1, None, 2, ALONE, 2),
        (2, 1, None, 2, ALONE, 2),
        (2, 1, None, 1, SEVERAL, 1),
        (8, 1, None, 4, SEVERAL, 4),
        (4, 2, None, 4, SEVERAL, 4),
        (4, 1, 2, 4, SEVERAL, 2),
        (2, 1, None, 4, SEVERAL, 4),
    ],
)
def test_layouts_that_work(
    tensor: int, pipeline: int, asked: int | None, local: int, launch: Launch, expected: int
) -> None:
    options = EngineOptions(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, gpus_per_node=asked)
    assert gpus_per_node(options, local, launch) == expected


@pytest.mark.parametrize(
    ("tensor", "pipeline", "asked", "local", "launch", "message"),
    [
        (4, 1, None, 2, ALONE, r"tensor_parallel_size is 4 and this machine has 2 GPUs"),
        (2, 2, None, 2, ALONE, r"2 x pipeline_parallel_size 2 need 4 GPUs and this machine has 2"),
        (8, 1, 8, 4, SEVERAL, r"gpus_per_node is 8 and this machine has 4"),
        (6, 1, None, 4, SEVERAL, r"expected a multiple of 4"),
    ],
)
def test_layouts_that_do_not(
    tensor: int, pipeline: int, asked: int | None, local: int, launch: Launch, message: str
) -> None:
    options = EngineOptions(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, gpus_per_node=asked)
    with pytest.raises(StartFailed, match=message):
        gpus_per_node(options, local, launch)


def test_each_machine_holds_its_part_of_the_weights() -> None:
    """Two machines of the kind whose GPU shares their memory."""
    facts = replace(FACTS, weight_bytes=8 << 30)
    options = EngineOptions(tensor_parallel_size=2, max_num_seqs=4)
    per_token = facts.kv_bytes_per_token("auto", 2)
    budget = kv_cache_budget(
        options,
        facts,
        GB10.gpus[0],
        max_model_len=256,
        kv_cache_dtype="auto",
        available_bytes=RUNTIME_RESERVE_BYTES + (4 << 30) + 300 * per_token,
    )
    assert budget.max_tokens == 300


def test_stages_share_the_layers_keys_and_values() -> None:
    whole = FACTS.kv_bytes_per_token("auto", 1)
    assert FACTS.kv_bytes_per_token("auto", 1, 2) == whole // 2


class TestPreparation:
    @pytest.fixture(autouse=True)
    def two_gpus_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = replace(B200, tensorrt_llm_version="1.2.1")
        monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: machine)

    def started_by(self, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engines.trtllm.startup.detect_launch", lambda: launch)

    def test_the_layout_reaches_the_runtime(self, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started_by(SEVERAL, monkeypatch)
        options = EngineOptions(
            golden / "mixtral-nvfp4-modelopt", tensor_parallel_size=2, pipeline_parallel_size=2
        )
        with installed("1.2.1"):
            arguments = prepare(options).arguments
        assert arguments["tensor_parallel_size"] == arguments["pipeline_parallel_size"] == 2
        assert arguments["gpus_per_node"] == 2

    def test_alone_nothing_is_said_of_nodes(self, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started_by(ALONE, monkeypatch)
        with installed("1.2.1"):
            arguments = prepare(EngineOptions(golden / "mixtral-nvfp4-modelopt")).arguments
        assert "gpus_per_node" not in arguments

    def test_a_build_may_be_split_over_more_gpus_than_are_here(
        self, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = prepared_directory(tmp_path, golden)
        monkeypatch.setattr(
            "engines.trtllm.startup.detect_machine",
            lambda: replace(B200, gpus=B200.gpus[:1], tensorrt_llm_version="1.2.1"),
        )
        with installed("1.2.1"):
            self.started_by(SEVERAL, monkeypatch)
            assert prepare(EngineOptions(directory)).arguments["tensor_parallel_size"] == 2
            self.started_by(ALONE, monkeypatch)
            with pytest.raises(StartFailed, match="split over 2 GPUs"):
                prepare(EngineOptions(directory))

    def test_an_engine_is_one_stage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started_by(SEVERAL, monkeypatch)
        options = EngineOptions(engine_directory(tmp_path, MANIFEST), pipeline_parallel_size=2)
        with installed("1.2.1"), pytest.raises(StartFailed, match="an engine in one stage"):
            prepare(options)

    def test_more_stages_than_layers_are_refused(self, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started_by(SEVERAL, monkeypatch)
        options = EngineOptions(golden / "mixtral-nvfp4-modelopt", pipeline_parallel_size=4)
        with installed("1.2.1"), pytest.raises(StartFailed, match="at most the model's 2 layers"):
            prepare(options)
