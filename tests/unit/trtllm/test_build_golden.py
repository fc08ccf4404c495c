"""The exact commands and files of a build, against those checked in under tests/golden/trtllm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.quantize.options import CalibrationOptions
from engines.trtllm.build_plan import BuildPlan, make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.checkpoint_config import checkpoint_config
from engines.trtllm.machine import Machine

# The checked-in files hold these in place of the directories of a run.
ENGINE_DIR = Path("/engines/ENGINE_DIR")
SAMPLES = Path("/data/samples.jsonl")


@dataclass(frozen=True)
class Scenario:
    name: str
    source: str
    target: str
    version: str
    tensor_parallel: int = 1
    kv_cache_dtype: str = "auto"


SCENARIOS = [
    Scenario("mixtral-nvfp4-gb10-1.2.1", "mixtral-nvfp4-modelopt", "gb10", "1.2.1"),
    Scenario("mixtral-nvfp4-gb10-1.3.0rc5", "mixtral-nvfp4-modelopt", "gb10", "1.3.0rc5"),
    Scenario("mixtral-nvfp4-gb10-1.4.0rc1", "mixtral-nvfp4-modelopt", "gb10", "1.4.0rc1"),
    Scenario("mistral-mxfp4-gb10-1.2.1", "mistral-mxfp4-ct", "gb10", "1.2.1"),
    Scenario("mistral-mxfp4-gb10-1.4.0rc1", "mistral-mxfp4-ct", "gb10", "1.4.0rc1"),
    Scenario("mixtral-nvfp4-tp2-gb200-1.2.1", "mixtral-nvfp4-modelopt", "gb200", "1.2.1", 2, "fp8"),
    Scenario("mixtral-nvfp4-tp2-gb200-1.4.0rc1", "mixtral-nvfp4-modelopt", "gb200", "1.4.0rc1", 2, "fp8"),
]


def plan_of(scenario: Scenario, golden: Path) -> BuildPlan:
    calibration = CalibrationOptions(SAMPLES) if "mxfp4" in scenario.source else None
    request = BuildRequest(
        golden / scenario.source,
        ENGINE_DIR,
        target=scenario.target,
        tensor_parallel=scenario.tensor_parallel,
        kv_cache_dtype=scenario.kv_cache_dtype,
        tensorrt_llm_version=scenario.version,
        calibration=calibration,
    )
    return make_build_plan(request, Machine())


def document_of(plan: BuildPlan) -> dict[str, Any]:
    """What is checked in of a plan."""
    document: dict[str, Any] = {"path": plan.path, "argv": list(plan.argv), "llm_options": plan.llm_options}
    if plan.path == "engine":
        document["checkpoint_config"] = checkpoint_config(
            plan.checkpoint.config,
            tensor_parallel=plan.options.tensor_parallel,
            kv_cache_dtype=plan.options.kv_cache_dtype,
            exclude=(),
        )
    return document


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_commands_and_files_are_the_checked_in_ones(scenario: Scenario, golden: Path) -> None:
    expected = json.loads((golden / "trtllm" / f"{scenario.name}.json").read_text())
    assert document_of(plan_of(scenario, golden)) == expected


def test_no_checked_in_file_is_forgotten(golden: Path) -> None:
    present = {path.stem for path in (golden / "trtllm").glob("*.json")}
    assert present == {scenario.name for scenario in SCENARIOS}
