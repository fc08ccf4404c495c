"""Folders of `nybble build`: a TensorRT engine, a prepared checkpoint, and those that must not be loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engines.base import Engine, EngineOptions
from engines.errors import CheckpointError, StartFailed, UnsupportedCheckpoint, UnsupportedParameter
from engines.registry import create_engine
from engines.trtllm.errors import StaleEngine
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import BuildOptions, Manifest, write_manifest
from engines.trtllm.pytorch_config import LLM_OPTIONS_FILE
from tests.support.fake_tensorrt_llm import installed
from tests.support.generation import collect, joined, make_request
from tests.support.gpu_machines import B200, GB10

MANIFEST = Manifest(
    manifest_version=1,
    nybble_version="0",
    created_at="2026-01-01T00:00:00Z",
    path="engine",
    build_key="0",
    source="mixtral",
    source_digest="0",
    source_layout="modelopt NVFP4",
    target="b200",
    target_sm=100,
    tensorrt_llm_version="1.2.1",
    machine=replace(B200, tensorrt_llm_version="1.2.1"),
    options=BuildOptions(2, 8, 128, 4096, "fp8"),
    argv=(),
    files=(),
    canaries=(),
)


def engine_directory(tmp_path: Path, manifest: Manifest = MANIFEST) -> Path:
    """As `nybble build` leaves it; what logits the engine keeps is as the manifest's options say."""
    pretrained = {
        "vocab_size": 320,
        "max_position_embeddings": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 128,
    }
    logprobs = manifest.options.logprobs
    build_config = {
        "max_seq_len": 128,
        "gather_generation_logits": logprobs != "none",
        "gather_context_logits": logprobs == "all",
    }
    config = {"version": "1.2.1", "pretrained_config": pretrained, "build_config": build_config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    write_manifest(tmp_path, manifest)
    return tmp_path


def prepared_directory(tmp_path: Path, golden: Path, **options: object) -> Path:
    for path in (golden / "mixtral-nvfp4-modelopt").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / LLM_OPTIONS_FILE).write_text(json.dumps(options))
    write_manifest(tmp_path, replace(MANIFEST, path="pytorch"))
    return tmp_path


def engine_on(
    machine: Machine, directory: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> Engine:
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: machine)
    return create_engine("trtllm", EngineOptions(directory, **options))


async def test_a_tensorrt_engine_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed("1.2.1") as behaviour:
        engine = engine_on(MANIFEST.machine, engine_directory(tmp_path), monkeypatch)
        await engine.start()
        try:
            info = engine.info
            assert (info.max_model_len, info.max_num_seqs, info.eos_token_ids) == (128, 8, {2, 3})
            assert len(joined(await collect(engine, make_request()))) == 8
            with pytest.raises(UnsupportedParameter, match="logprobs"):
                await collect(engine, make_request(num_logprobs=0))
        finally:
            await engine.close()
        assert behaviour.llms[0].args.tensor_parallel_size == 2


async def test_a_prepared_checkpoint_keeps_the_options_of_its_build(
    tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepared_directory(
        tmp_path,
        golden,
        moe_config={"backend": "VANILLA"},
        guided_decoding_backend="xgrammar",
        kv_cache_config={"copy_on_partial_reuse": False},
    )
    with installed("1.2.1") as behaviour:
        engine = engine_on(MANIFEST.machine, directory, monkeypatch, prefix_caching=False)
        await engine.start()
        await engine.close()
    args = behaviour.llms[0].args
    assert args.moe_config.backend == "VANILLA"
    assert args.guided_decoding_backend == "llguidance"  # the one whose grammars are tried out beforehand
    assert args.kv_cache_config.copy_on_partial_reuse is False
    assert args.kv_cache_config.enable_block_reuse is False
    assert args.kv_cache_config.dtype == "fp8"
    assert (args.max_batch_size, args.max_num_tokens) == (8, 4096)


@pytest.mark.parametrize(
    ("machine", "options", "match"),
    [
        (replace(GB10, tensorrt_llm_version="1.2.1"), {}, "1 GPU|split over 2 GPUs"),
        (replace(B200, tensorrt_llm_version="1.2.0"), {}, "built by TensorRT-LLM 1.2.1 and 1.2.0"),
        (MANIFEST.machine, {"tensor_parallel_size": 4}, "was built for 2"),
        (MANIFEST.machine, {"kv_cache_dtype": "bfloat16"}, "was built for 'fp8'.*--kv-cache-dtype"),
        (MANIFEST.machine, {"max_model_len": 256}, "built for at most 128 tokens"),
    ],
)
async def test_a_foreign_engine_is_refused_with_the_reason(
    machine: Machine,
    options: dict[str, int | str],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with installed("1.2.1"):
        engine = engine_on(machine, engine_directory(tmp_path), monkeypatch, **options)
        with pytest.raises(StartFailed, match=match):
            await engine.start()
        await engine.close()


async def test_a_release_without_the_tensorrt_backend_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(MANIFEST, tensorrt_llm_version="1.4.0rc1", machine=B200)
    with installed("1.4.0rc1"):
        engine = engine_on(B200, engine_directory(tmp_path, manifest), monkeypatch)
        with pytest.raises(StartFailed, match="loads no engines made by trtllm-build"):
            await engine.start()
        await engine.close()


async def test_changed_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = engine_directory(tmp_path)
    manifest = json.loads(json.dumps(asdict(MANIFEST)))
    manifest["files"] = [{"name": "rank0.engine", "num_bytes": 5, "sha256": "0"}]
    (directory / "build_manifest.json").write_text(json.dumps(manifest))
    with installed("1.2.1"):
        engine = engine_on(MANIFEST.machine, directory, monkeypatch)
        with pytest.raises(StaleEngine, match=r"rank0\.engine is missing"):
            await engine.start()
        await engine.close()


@pytest.mark.parametrize("text", ["", "{}", '{"pretrained_config": {}}'])
async def test_a_damaged_engine_config_is_a_checkpoint_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = engine_directory(tmp_path)
    (directory / "config.json").write_text(text)
    with installed("1.2.1"):
        engine = engine_on(MANIFEST.machine, directory, monkeypatch)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            await engine.start()
        await engine.close()


async def test_what_needs_a_conversion_is_refused_with_the_command(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed("1.4.0rc1"):
        engine = engine_on(B200, golden / "mistral-mxfp4-ct", monkeypatch)
        with pytest.raises(UnsupportedCheckpoint, match=r"nybble convert .* --calibration"):
            await engine.start()
        await engine.close()
