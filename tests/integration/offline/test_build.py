"""`nybble build` from checkpoint to manifest, with a strict stand-in for trtllm-build."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.checkpoint import Checkpoint
from engines.convert.errors import NoInputScales, NotLossless
from engines.errors import InvalidRequest
from engines.quantize.options import CalibrationOptions
from engines.trtllm import build as build_module
from engines.trtllm import build_stages
from engines.trtllm.build import BuildEvents, build
from engines.trtllm.build_plan import make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.build_workspace import open_workspace, staging_directory
from engines.trtllm.errors import BuildError, BuildRefused, BuildToolFailed, DestinationError
from engines.trtllm.machine import Gpu, Machine
from engines.trtllm.manifest import load_for, read_manifest, stale_reasons, verify_files
from engines.trtllm.model_facts import read_engine_facts
from engines.trtllm.pytorch_config import read_llm_options
from service.tokenizer import Tokenizer
from tests.support import fake_trtllm_build
from tests.support.checkpoint_edits import copy_checkpoint, edit_tensors
from tests.support.command_line import Result
from tests.support.nvfp4_checkpoint import mixtral
from tests.support.plain_forward import read_tensors
from tests.support.random_checkpoint import RandomCheckpoint

SPARK = Machine((Gpu("NVIDIA GB10", 121, None),), "580.95.05", "13.0.2", "10.14.1", "1.2.1")
NOTHING = Machine()
MIXTRAL, MXFP4 = "mixtral-nvfp4-modelopt", "mistral-mxfp4-ct"


@pytest.fixture(autouse=True)
def trtllm_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in on the PATH."""
    program = tmp_path / "bin" / "trtllm-build"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_trtllm_build.__file__} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def request(source: Path, destination: Path, **changes: Any) -> BuildRequest:
    defaults: dict[str, Any] = {"target": "gb10", "num_canaries": 0, "tensorrt_llm_version": "1.2.1"}
    return BuildRequest(source, destination, **{**defaults, **changes})


def run_build(
    source: Path, destination: Path, machine: Machine = SPARK, **changes: Any
) -> build_module.BuildResult:
    return build(make_build_plan(request(source, destination, **changes), machine), machine)


def test_an_engine_is_built_and_loads_only_here(golden: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    lines: list[str] = []
    stages: list[str] = []
    plan = make_build_plan(request(golden / MIXTRAL, engine, num_canaries=2), SPARK)
    build(plan, SPARK, BuildEvents(stage=stages.append, line=lines.append))
    manifest = load_for(engine, SPARK)
    assert {"config.json", "generation_config.json", "tokenizer.json", "rank0.engine"} <= {
        record.name for record in manifest.files
    }
    facts = read_engine_facts(engine)
    assert (facts.eos_token_ids, facts.num_layers, facts.max_position_embeddings) == (frozenset({2}), 2, 512)
    assert Tokenizer.load(engine).encode("The", add_special_tokens=True)[0] == 1
    assert [len(canary.token_ids) for canary in manifest.canaries] == [8, 8]
    assert "Building engine" in (engine / "build.log").read_text()
    assert lines[-1].startswith("[TRT-LLM] [I] Total time")
    assert "run trtllm-build" in stages
    assert not staging_directory(engine).exists()
    other = replace(SPARK, gpus=(Gpu("NVIDIA GB200", 100, 1),))
    assert "SM 100" in stale_reasons(manifest, engine, other)[0]


def test_the_cpu_engine_opens_a_prepared_directory_and_finds_the_same_weights(
    golden: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    result = run_build(golden / MIXTRAL, engine, NOTHING, tensorrt_llm_version="1.4.0rc1")
    assert Checkpoint.open(engine).layout is Checkpoint.open(golden / MIXTRAL).layout
    weights = golden / MIXTRAL / "model.safetensors"
    assert os.path.samefile(engine / "model.safetensors", weights)
    assert verify_files(result.manifest, engine) == ()
    assert read_llm_options(engine)["moe_config"] == {"backend": "CUTLASS"}


def test_llm_options_are_yaml_too(golden: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    run_build(golden / MIXTRAL, tmp_path / "engine", NOTHING, tensorrt_llm_version="1.4.0rc1")
    text = (tmp_path / "engine" / "llm_options.yaml").read_text()
    assert yaml.safe_load(text) == read_llm_options(tmp_path / "engine") == json.loads(text)


def test_the_options_may_be_changed_afterwards_and_nothing_else(golden: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    manifest = run_build(golden / MIXTRAL, engine, NOTHING, tensorrt_llm_version="1.4.0rc1").manifest
    there = replace(SPARK, tensorrt_llm_version="1.4.0rc1")
    (engine / "llm_options.yaml").write_text("{}")
    assert stale_reasons(manifest, engine, there) == ()
    (engine / "hf_quant_config.json").write_text("{}")
    assert "hf_quant_config.json has" in stale_reasons(manifest, engine, there)[0]


def test_hf_quant_config_is_made_when_the_source_has_none(tmp_path: Path) -> None:
    checkpoint = mixtral(tmp_path)
    assert not (checkpoint.directory / "hf_quant_config.json").exists()
    run_build(checkpoint.directory, tmp_path / "engine", NOTHING, tensorrt_llm_version="1.4.0rc1")
    assert json.loads((tmp_path / "engine" / "hf_quant_config.json").read_text()) == {
        "producer": {"name": "modelopt"},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": 16,
            "exclude_modules": ["lm_head", "*block_sparse_moe.gate"],
        },
    }


def test_mxfp4_is_transcoded_with_bit_equal_weights(golden: Path, samples_file: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    calibration = CalibrationOptions(samples_file, 2, 16)
    result = run_build(
        golden / MXFP4, engine, NOTHING, tensorrt_llm_version="1.3.0rc13", calibration=calibration
    )
    assert "activations change from MXFP4" in " ".join(result.manifest.notes)
    before, after = Checkpoint.open(golden / MXFP4), Checkpoint.open(engine)
    for old, new in zip(before.modules(), after.modules(), strict=True):
        if hasattr(old, "packed"):
            assert (new.format, new.convention) == ("nvfp4", "modelopt")
            assert (old.decoded(False) == new.decoded(False)).all()
            assert new.input_scale > 0


def test_mxfp4_becomes_an_engine_too(golden: Path, samples_file: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(samples_file, 2, 16)
    run_build(golden / MXFP4, tmp_path / "engine", calibration=calibration)
    assert (tmp_path / "engine" / "rank0.engine").is_file()


def test_a_failed_build_keeps_the_conversion(
    golden: Path, samples_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = CalibrationOptions(samples_file, 2, 16)
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", "crash:1:out of memory")
    with pytest.raises(BuildToolFailed):
        run_build(golden / MXFP4, tmp_path / "engine", calibration=calibration)
    monkeypatch.delenv("FAKE_TRTLLM_BUILD")
    result = run_build(golden / MXFP4, tmp_path / "engine", calibration=calibration)
    assert result.resumed == ("prepared", "trtllm_checkpoint")


def test_a_calibration_file_that_is_not_there_is_refused(golden: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidRequest, match=r"absent\.jsonl is no file"):
        run_build(golden / MXFP4, tmp_path / "engine", calibration=calibration)
    assert not staging_directory(tmp_path / "engine").exists()


def test_mxfp4_without_calibration_is_refused(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(NoInputScales, match="--calibration"):
        run_build(golden / MXFP4, tmp_path / "engine")


def test_mxfp4_that_cannot_be_lossless_is_refused_by_the_plan(
    golden: Path, samples_file: Path, tmp_path: Path
) -> None:
    source = copy_checkpoint(golden / MXFP4, tmp_path / "source")

    def widen(tensors: Any) -> None:
        _, scales = tensors["model.layers.0.self_attn.q_proj.weight_scale"]
        scales[0, 0], scales[1, 1] = 100, 160

    edit_tensors(source, widen)
    with pytest.raises(NotLossless, match="q_proj"):
        make_build_plan(
            request(source, tmp_path / "engine", calibration=CalibrationOptions(samples_file)), SPARK
        )


def test_the_second_build_does_nothing(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_build(golden / MIXTRAL, tmp_path / "engine")
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", "crash:1:must not run")
    monkeypatch.setattr(build_module, "source_digests", lambda _: pytest.fail("hashed again"))
    second = run_build(golden / MIXTRAL, tmp_path / "engine")
    assert second == build_module.BuildResult(first.manifest, was_current=True)


def test_a_touched_source_with_the_same_content_is_the_same_build(golden: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(golden / MIXTRAL, tmp_path / "source")
    run_build(source, tmp_path / "engine")
    os.utime(source / "config.json", (1, 1))
    assert run_build(source, tmp_path / "engine").was_current


@pytest.mark.parametrize(
    "changes", [{"max_batch_size": 3}, {"tensor_parallel": 2}, {"kv_cache_dtype": "fp8"}, {"max_seq_len": 99}]
)
def test_another_build_at_the_same_place_is_refused(
    golden: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run_build(golden / MIXTRAL, tmp_path / "engine")
    with pytest.raises(DestinationError, match="holds another build"):
        run_build(golden / MIXTRAL, tmp_path / "engine", **changes)


def test_a_changed_source_is_another_build(golden: Path, tmp_path: Path) -> None:
    source = copy_checkpoint(golden / MIXTRAL, tmp_path / "source")
    run_build(source, tmp_path / "engine")
    (source / "generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(DestinationError, match="holds another build"):
        run_build(source, tmp_path / "engine")


def test_a_damaged_build_is_refused(golden: Path, tmp_path: Path) -> None:
    run_build(golden / MIXTRAL, tmp_path / "engine")
    (tmp_path / "engine" / "rank0.engine").write_bytes(b"x")
    with pytest.raises(DestinationError, match=r"damaged: rank0\.engine"):
        run_build(golden / MIXTRAL, tmp_path / "engine")


def test_a_strangers_directory_is_left_alone(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mine").write_text("x")
    with pytest.raises(DestinationError, match="not made by nybble build"):
        run_build(golden / MIXTRAL, tmp_path / "engine")
    assert (tmp_path / "engine" / "mine").read_text() == "x"


def test_a_killed_build_resumes_after_its_finished_stage(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", "half")
    with pytest.raises(BuildToolFailed, match=r"signal SIGKILL.*memory ran out"):
        run_build(golden / MIXTRAL, engine, tensor_parallel=2)
    assert not engine.exists()
    assert (staging_directory(engine) / "engine" / "rank0.engine").exists()
    monkeypatch.delenv("FAKE_TRTLLM_BUILD")
    monkeypatch.setattr(build_stages, "write_checkpoint", lambda *_: pytest.fail("written again"))
    result = run_build(golden / MIXTRAL, engine, tensor_parallel=2)
    assert result.resumed == ("trtllm_checkpoint",)
    assert verify_files(read_manifest(engine), engine) == ()


def test_what_another_build_left_is_cleaned_up(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", "half")
    with pytest.raises(BuildToolFailed):
        run_build(golden / MIXTRAL, engine, tensor_parallel=2)
    monkeypatch.delenv("FAKE_TRTLLM_BUILD")
    assert run_build(golden / MIXTRAL, engine).resumed == ()
    assert not (engine / "rank1.engine").exists()
    assert not staging_directory(engine).exists()


def test_two_builds_of_one_place_do_not_meet(golden: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    with open_workspace(engine, "another"), pytest.raises(DestinationError, match="another process"):
        run_build(golden / MIXTRAL, engine)


def test_a_source_that_changes_meanwhile_is_refused(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_checkpoint(golden / MIXTRAL, tmp_path / "source")

    def change(*arguments: Any) -> None:
        os.utime(source / "config.json", (1, 1))

    monkeypatch.setattr(build_stages, "check_engine", change)
    with pytest.raises(BuildRefused, match="changed while they were read"):
        run_build(source, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash:1:torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "lower --max-batch-size"),
        ("crash:1:RuntimeError: No CUDA-capable device is detected", "no usable GPU"),
        ("crash:1:RuntimeError: Required but not provided tensors:{'x'}", "official converter"),
        ("crash:1:RuntimeError: Encounter error 'shape' for parameter 'y'", "other shapes"),
        ("crash:1:TypeError: __init__() got an unexpected keyword argument 'tp_mode'", "does not know a key"),
        ("crash:1:RuntimeError: Arch unsupported for CUTLASS FP4 GEMM", "no FP4 kernel"),
        ("crash:1:OSError: [Errno 28] No space left on device", "disk is full"),
        ("crash:1:ImportError: libmpi.so.40: cannot open shared object file", "container"),
        ("crash:3:something new", "not one of the known ones.*something new"),
        ("kill:SIGKILL", "signal SIGKILL: killed from outside"),
        ("kill:SIGSEGV", "signal SIGSEGV: it crashed"),
        ("crash:137:", "signal SIGKILL"),
    ],
)
def test_failures_of_the_program_become_advice(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", mode)
    with pytest.raises(BuildToolFailed, match=message) as caught:
        run_build(golden / MIXTRAL, tmp_path / "engine")
    assert caught.value.exit_code != 0
    assert str(staging_directory(tmp_path / "engine") / "build.log") in str(caught.value)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("mode", "version", "message"),
    [
        ("forget", "1.2.1", "rank0.engine: trtllm-build ended well but did not write it"),
        ("wrong", "1.2.1", "build_config.max_batch_size is 65; the build asked for 64"),
        ("", "1.2.0", "version is '1.2.0'; the build asked for '1.2.1'"),
    ],
)
def test_an_engine_that_is_not_what_was_asked_is_refused(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, version: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM_BUILD", mode)
    monkeypatch.setenv("FAKE_TRTLLM_VERSION", version)
    with pytest.raises(BuildError, match=message):
        run_build(golden / MIXTRAL, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (NOTHING, "none is installed here"),
        (replace(SPARK, tensorrt_llm_version="1.2.0"), "and 1.2.0 is installed"),
        (replace(SPARK, gpus=()), "no GPU"),
        (replace(SPARK, gpus=(Gpu("NVIDIA B200", 100, 1),)), r"NVIDIA B200 \(SM 100\)"),
    ],
)
def test_an_engine_is_built_only_where_it_will_run(
    golden: Path, tmp_path: Path, machine: Machine, message: str
) -> None:
    with pytest.raises(BuildRefused, match=message):
        run_build(golden / MIXTRAL, tmp_path / "engine", machine)


def test_a_missing_program_is_said(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildRefused, match=r"not on the PATH.*release:1\.2\.1"):
        run_build(golden / MIXTRAL, tmp_path / "engine")


def test_unequal_scales_are_refused_on_the_pytorch_path(tmp_path: Path) -> None:
    source = RandomCheckpoint(layout="modelopt").write(tmp_path / "source")
    with pytest.raises(BuildRefused, match=r"q_proj.*unequal weight_scale_2"):
        run_build(source, tmp_path / "engine", NOTHING, tensorrt_llm_version="1.4.0rc1")


def test_the_command_plans_without_touching_anything(
    run: Callable[..., Result], golden: Path, tmp_path: Path
) -> None:
    arguments = ("build", golden / MIXTRAL, tmp_path / "engine", "--target", "gb200", "--dry-run")
    result = run(*arguments, "--tensorrt-llm-version", "1.2.1", "--tensor-parallel", 2)
    assert (result.status, result.err) == (0, "")
    assert "engine: TensorRT-LLM 1.2.1 is of the line 1.0 to 1.2" in " ".join(result.out.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_the_command_builds_and_then_says_that_it_is_current(
    run: Callable[..., Result], golden: Path, tmp_path: Path
) -> None:
    arguments = ("build", golden / MIXTRAL, tmp_path / "engine", "--target", "gb10", "--canaries", 1)
    first = run(*arguments, "--tensorrt-llm-version", "1.4.0rc1", "--json")
    assert first.status == 0
    document = json.loads(first.out)
    assert document["plan"]["path"] == "pytorch"
    assert document["result"]["was_current"] is False
    assert document["result"]["num_canaries"] == 1
    second = run(*arguments, "--tensorrt-llm-version", "1.4.0rc1")
    assert f"{tmp_path / 'engine'} is up to date" in second.out


def test_the_command_refuses_in_one_line(run: Callable[..., Result], golden: Path, tmp_path: Path) -> None:
    result = run("build", golden / MIXTRAL, tmp_path / "engine", "--target", "gb10")
    assert result.status == 1
    assert result.err == (
        "error: tensorrt-llm is not installed here; name the release to plan for: "
        "--tensorrt-llm-version 1.2.1\n"
    )


def test_links_fall_back_to_copies(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run_build(golden / MIXTRAL, tmp_path / "engine", NOTHING, tensorrt_llm_version="1.4.0rc1")
    assert read_tensors(tmp_path / "engine").keys() == read_tensors(golden / MIXTRAL).keys()
