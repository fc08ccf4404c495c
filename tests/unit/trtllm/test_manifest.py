"""The manifest survives its file, refuses what makes no sense, and says why an engine may not be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.errors import MalformedCheckpoint
from engines.trtllm.errors import StaleEngine
from engines.trtllm.machine import Gpu, Machine, parse_gpus
from engines.trtllm.manifest import (
    MANIFEST_FILE,
    BuildOptions,
    Canary,
    Manifest,
    load_for,
    read_manifest,
    record_files,
    stale_reasons,
    verify_files,
    write_manifest,
)

SPARK = Machine((Gpu("NVIDIA GB10", 121, None),), "580.95.05", "13.0.2", "10.14.1", "1.2.1")


@pytest.fixture
def engine(tmp_path: Path) -> Manifest:
    """An engine directory with its manifest, built on SPARK."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rank0.engine").write_bytes(bytes(2 << 20))
    manifest = Manifest(
        manifest_version=1,
        nybble_version="0.1.0",
        created_at="2026-11-22T05:40:00+00:00",
        path="engine",
        build_key="0123abcd",
        source="/models/mixtral",
        source_digest="ab" * 32,
        source_layout="modelopt NVFP4",
        target="gb10",
        target_sm=121,
        tensorrt_llm_version="1.2.1",
        machine=SPARK,
        options=BuildOptions(1, 16, 8192, 4096, "fp8"),
        argv=("trtllm-build", "--gemm_plugin", "nvfp4"),
        files=record_files(tmp_path, ["config.json", "rank0.engine"]),
        canaries=(Canary((1, 5), (7, 8), (-0.25, -1.5), (2.0, 0.125)),),
        notes=("activations become NVFP4",),
    )
    write_manifest(tmp_path, manifest)
    return manifest


def edit(directory: Path, **changes: Any) -> None:
    path = directory / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(engine: Manifest, tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == engine
    assert load_for(tmp_path, SPARK) == engine
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_FILE, "config.json", "rank0.engine"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest_version": 2}, "manifest_version is 2"),
        ({"path": "onnx"}, "path"),
        ({"target_sm": "121"}, "target_sm"),
        ({"options": {"tensor_parallel": 1}}, "options.max_batch_size"),
        ({"files": [{"name": "../secret", "num_bytes": 1, "sha256": ""}]}, "no name within"),
        (
            {"canaries": [{"prompt_token_ids": [1], "token_ids": [2], "logprobs": [], "margins": [1.0]}]},
            "differ in length",
        ),
    ],
)
@pytest.mark.usefixtures("engine")
def test_a_manifest_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit(tmp_path, **changes)
    with pytest.raises(MalformedCheckpoint, match=message):
        read_manifest(tmp_path)


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedCheckpoint, match=MANIFEST_FILE):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpus": ()}, "shows none.*nybble serve /models/mixtral --engine cpu"),
        ({"gpus": (Gpu("NVIDIA GB200", 100, 1),)}, r"GPU 0 is NVIDIA GB200 \(SM 100\)"),
        ({"tensorrt_llm_version": None}, "not installed"),
        ({"tensorrt_llm_version": "1.2.0"}, "built by TensorRT-LLM 1.2.1 and 1.2.0 is installed"),
        ({"tensorrt_version": "10.13.0"}, "TensorRT 10.14.1 and 10.13.0"),
        ({"cuda_version": "12.9.1"}, "CUDA 13 and 12"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_an_engine_from_another_machine_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StaleEngine, match=reason) as caught:
        load_for(tmp_path, replace(SPARK, **changes))
    assert ("nybble build /models/mixtral" in str(caught.value)) == (
        "gpus" not in changes or changes["gpus"] != ()
    )


def test_a_newer_driver_and_a_cuda_of_the_same_major_release_are_no_reason(
    engine: Manifest, tmp_path: Path
) -> None:
    newer = replace(SPARK, driver_version="590.1", cuda_version="13.2.1")
    assert stale_reasons(engine, tmp_path, newer) == ()


def test_a_split_engine_needs_as_many_equal_gpus(engine: Manifest, tmp_path: Path) -> None:
    split = replace(engine, options=replace(engine.options, tensor_parallel=2))
    assert stale_reasons(split, tmp_path, SPARK) == ("it was split over 2 GPUs and this machine has 1",)
    mixed = replace(SPARK, gpus=(*SPARK.gpus, Gpu("RTX", 120, 1)))
    assert stale_reasons(split, tmp_path, mixed) == (
        "it was made for gb10 (SM 121) and GPU 1 is RTX (SM 120)",
    )
    assert stale_reasons(engine, tmp_path, mixed) == ()


@pytest.mark.parametrize(
    ("running", "loads"),
    [("1.3.0rc13", True), ("1.4.0rc1", True), ("1.3.0rc5", False), ("1.2.1", False), ("2.0.0", False)],
)
def test_a_prepared_checkpoint_loads_from_its_release_upwards(
    engine: Manifest, tmp_path: Path, running: str, loads: bool
) -> None:
    prepared = replace(engine, path="pytorch", tensorrt_llm_version="1.3.0rc13")
    machine = replace(SPARK, tensorrt_llm_version=running, tensorrt_version=None, cuda_version=None)
    assert (stale_reasons(prepared, tmp_path, machine) == ()) is loads


def test_files_that_changed_are_found(engine: Manifest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")  # the same size
    assert "digest" in " ".join(stale_reasons(engine, tmp_path, SPARK))
    (tmp_path / "config.json").unlink()
    assert stale_reasons(engine, tmp_path, SPARK) == ("config.json is missing",)


def test_a_large_file_is_compared_by_size_at_load_and_by_digest_when_verified(
    engine: Manifest, tmp_path: Path
) -> None:
    content = bytearray(2 << 20)
    content[12345] = 1
    (tmp_path / "rank0.engine").write_bytes(content)
    assert stale_reasons(engine, tmp_path, SPARK) == ()
    assert "rank0.engine is not the file" in verify_files(engine, tmp_path)[0]
    (tmp_path / "rank0.engine").write_bytes(content[:-1])
    assert "rank0.engine has" in stale_reasons(engine, tmp_path, SPARK)[0]


def test_gpus_are_read_from_nvidia_smi() -> None:
    gpus, driver = parse_gpus("NVIDIA GB10, 12.1, [N/A], 580.95.05\nNVIDIA GB200, 10.0, 189471, 580.95.05\n")
    assert gpus == (Gpu("NVIDIA GB10", 121, None), Gpu("NVIDIA GB200", 100, 189471 * 1024 * 1024))
    assert driver == "580.95.05"


def test_complaints_of_nvidia_smi_are_no_gpus() -> None:
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate\nNo devices were found\n") == (
        (),
        None,
    )
