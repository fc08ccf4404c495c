"""llm_options.yaml holds nothing that LLM(...) of its release would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import MalformedCheckpoint
from engines.trtllm.build_plan import make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.machine import Machine
from engines.trtllm.pytorch_config import LLM_OPTIONS_FILE, read_llm_options, write_llm_options
from tests.support.fake_tensorrt_llm.arguments import config_classes
from tests.support.fake_tensorrt_llm.package import VERSIONS
from tests.support.fake_tensorrt_llm.releases import Release


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", ["gb10", "rtx6000-blackwell", "gb200"])
@pytest.mark.parametrize("source", ["mixtral-nvfp4-modelopt", "mistral-nvfp4-ct"])
def test_every_release_takes_its_options(golden: Path, version: str, target: str, source: str) -> None:
    request = BuildRequest(
        golden / source, Path("/nowhere/out"), target=target, path="pytorch", tensorrt_llm_version=version
    )
    options = make_build_plan(request, Machine()).llm_options
    arguments = config_classes(Release(version))["TorchLlmArgs"](model="/nowhere/out", **options)
    assert arguments.model_dump()["max_batch_size"] == options["max_batch_size"]


def test_an_fp8_cache_is_said(golden: Path) -> None:
    request = BuildRequest(
        golden / "mixtral-nvfp4-modelopt",
        Path("/nowhere/out"),
        target="gb200",
        kv_cache_dtype="fp8",
        tensorrt_llm_version="1.4.0rc1",
    )
    assert make_build_plan(request, Machine()).llm_options["kv_cache_config"]["dtype"] == "fp8"


def test_the_file_is_read_back_and_may_be_absent(tmp_path: Path) -> None:
    assert read_llm_options(tmp_path) == {}
    write_llm_options(tmp_path, {"max_batch_size": 3})
    assert read_llm_options(tmp_path) == {"max_batch_size": 3}
    (tmp_path / LLM_OPTIONS_FILE).write_text("max_batch_size: 3\n")
    with pytest.raises(MalformedCheckpoint, match=LLM_OPTIONS_FILE):
        read_llm_options(tmp_path)
