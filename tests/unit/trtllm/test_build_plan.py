"""What a plan decides, what it refuses, and the memory it reckons with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.capacity.devices import GPU_RUNTIME_BYTES, HOST_BYTES, gpu_named
from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import InvalidRequest, StartFailed, UnsupportedCheckpoint
from engines.quantize.options import CalibrationOptions
from engines.trtllm.build_plan import BuildPlan, make_build_plan
from engines.trtllm.build_request import BuildRequest
from engines.trtllm.checkpoint_writer import checkpoint_num_bytes
from engines.trtllm.errors import BuildRefused
from engines.trtllm.machine import Gpu, Machine
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_budget import memory_budget, weight_bytes
from engines.trtllm.targets import resolve_target
from tests.support.nvfp4_checkpoint import mistral, mixtral

OPTIONS = BuildOptions(1, 8, 128, 256, "bfloat16")


def plan(source: Path, machine: Machine = Machine(), **changes: Any) -> BuildPlan:  # noqa: B008 - immutable
    defaults: dict[str, Any] = {"target": "gb10", "tensorrt_llm_version": "1.4.0rc1"}
    return make_build_plan(BuildRequest(source, Path("/nowhere/out"), **{**defaults, **changes}), machine)


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("1.0.0", "engine"),
        ("1.1.0", "engine"),
        ("1.2.1", "engine"),
        ("1.3.0rc0", "pytorch"),
        ("1.3.0rc20", "pytorch"),
        ("1.3.0rc21", "pytorch"),
        ("1.4.0rc1", "pytorch"),
    ],
)
def test_the_path_follows_the_release(golden: Path, version: str, path: str) -> None:
    assert plan(golden / "mixtral-nvfp4-modelopt", tensorrt_llm_version=version).path == path


def test_a_path_can_be_insisted_on_as_long_as_it_exists(golden: Path) -> None:
    source = golden / "mixtral-nvfp4-modelopt"
    assert plan(source, path="engine", tensorrt_llm_version="1.3.0rc20").path == "engine"
    assert plan(source, path="pytorch", tensorrt_llm_version="1.2.1").path == "pytorch"
    with pytest.raises(BuildRefused, match=r"1\.3\.0rc21 has no trtllm-build"):
        plan(source, path="engine", tensorrt_llm_version="1.3.0rc21")


def test_the_installed_release_is_the_default(golden: Path) -> None:
    machine = Machine(tensorrt_llm_version="1.1.0")
    assert str(plan(golden / "mixtral-nvfp4-modelopt", machine, tensorrt_llm_version=None).version) == "1.1.0"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "h100"}, InvalidRequest, "expected one of: gb10"),
        ({"target": "auto"}, InvalidRequest, "no NVIDIA GPU was found"),
        ({"path": "onnx"}, InvalidRequest, "--path 'onnx'"),
        ({"kv_cache_dtype": "int8"}, InvalidRequest, "--kv-cache-dtype"),
        ({"tensor_parallel": 0}, InvalidRequest, "--tensor-parallel is 0"),
        ({"tensor_parallel": 4}, BuildRefused, "2 KV heads cannot be shared"),
        ({"max_batch_size": 0}, InvalidRequest, "--max-batch-size is 0"),
        ({"max_seq_len": 513}, InvalidRequest, "expected 2 to 512"),
        ({"max_num_tokens": 10}, InvalidRequest, "below --max-batch-size 64"),
        ({"logprobs": "some"}, InvalidRequest, "expected one of: none, generated, all"),
        ({"logprobs": "all"}, InvalidRequest, "PyTorch backend gives log-probabilities without it"),
        ({"tensorrt_llm_version": "newest"}, InvalidRequest, "is no version"),
        ({"tensorrt_llm_version": "0.20.0"}, StartFailed, "not supported"),
        ({"calibration": CalibrationOptions(Path("x.jsonl"))}, InvalidRequest, "brings its input scales"),
        ({"num_canaries": -1}, InvalidRequest, "--canaries"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(
    golden: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(golden / "mixtral-nvfp4-modelopt", **changes)


def test_a_plain_checkpoint_is_sent_to_quantize(golden: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="nybble quantize"):
        plan(golden / "base-mistral")


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    source = mistral(tmp_path, sliding_window=100).directory
    assert plan(source).options.max_seq_len == 100
    with pytest.raises(InvalidRequest, match="sliding window 100"):
        plan(source, max_seq_len=101)


def test_long_prompts_are_chunked_only_where_they_have_to_be(golden: Path) -> None:
    source = golden / "mixtral-nvfp4-modelopt"
    assert plan(source).llm_options["enable_chunked_prefill"] is False
    chunked = plan(source, max_num_tokens=128).llm_options
    assert chunked["enable_chunked_prefill"] is True
    assert chunked["max_num_tokens"] == 128


def test_widths_that_need_padding_are_refused_on_the_engine_path_only(tmp_path: Path) -> None:
    source = mistral(tmp_path, intermediate_size=192).directory
    assert plan(source).path == "pytorch"
    with pytest.raises(BuildRefused, match="whole multiples of 128"):
        plan(source, tensorrt_llm_version="1.2.1")


def test_fp8_attention_over_the_prompt_needs_a_quantised_output_projection(tmp_path: Path) -> None:
    quantised = mistral(tmp_path / "a").directory
    dense = mixtral(tmp_path / "b", dense=("lm_head", "*gate", "*self_attn*")).directory
    flag = "--use_fp8_context_fmha"
    fp8 = {"tensorrt_llm_version": "1.2.1", "kv_cache_dtype": "fp8"}
    assert flag in plan(quantised, **fp8).argv
    assert flag not in plan(dense, **fp8).argv
    assert flag not in plan(quantised, tensorrt_llm_version="1.2.1").argv


@pytest.mark.parametrize("make", [mistral, mixtral])
def test_weights_are_those_of_the_written_checkpoint_less_the_plain_scales(make: Any, tmp_path: Path) -> None:
    """Beside codes, scales, norms and embeddings the writer stores one more copy of the scales and a few
    factors, and the router in float32."""
    checkpoint = make(tmp_path, vocab_size=72)
    for tensor_parallel in (1, 2, 4):
        reckoned = weight_bytes(checkpoint, tensor_parallel)
        written = checkpoint_num_bytes(checkpoint, tensor_parallel, "bfloat16")
        fp4 = [module for module in checkpoint.modules() if hasattr(module, "packed")]
        second_copy = sum(module.scales.size for module in fp4) // tensor_parallel
        assert 0 <= written - second_copy - reckoned < 4096


def test_transcoded_weights_are_counted_as_nvfp4(golden: Path) -> None:
    mxfp4, nvfp4 = (Checkpoint.open(golden / f"mistral-{name}-ct") for name in ("mxfp4", "nvfp4"))
    assert weight_bytes(mxfp4, 1) == weight_bytes(nvfp4, 1)


def test_unified_memory_is_counted_once(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden / "mixtral-nvfp4-modelopt")
    device = replace(gpu_named("gb10"), memory_bytes=20 * 1024**3)
    budget = memory_budget(checkpoint, device, OPTIONS)
    assert budget.host_bytes == HOST_BYTES
    used = budget.weight_bytes + budget.activation_bytes + GPU_RUNTIME_BYTES
    assert used + budget.host_bytes + budget.kv_cache_bytes <= device.memory_bytes
    # The runtime will take its share of all that is free, the host's part included.
    free = device.memory_bytes - used
    assert budget.kv_cache_bytes == int(free * budget.free_gpu_memory_fraction)
    assert budget.free_gpu_memory_fraction < 0.9


def test_a_gpus_own_memory_is_not_shared_with_the_host(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden / "mixtral-nvfp4-modelopt")
    budget = memory_budget(checkpoint, gpu_named("gb200"), OPTIONS)
    assert (budget.host_bytes, budget.free_gpu_memory_fraction) == (0, 0.9)
    assert budget.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    split = memory_budget(checkpoint, gpu_named("gb200"), replace(OPTIONS, tensor_parallel=2))
    assert split.kv_bytes_per_token * 2 == budget.kv_bytes_per_token


def test_a_model_that_does_not_fit_is_refused_with_the_sizes(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden / "mixtral-nvfp4-modelopt")
    device = replace(gpu_named("gb10"), memory_bytes=GPU_RUNTIME_BYTES + HOST_BYTES)
    with pytest.raises(BuildRefused, match=r"operating system and service 8\.00 GiB.*--kv-cache-dtype fp8"):
        memory_budget(checkpoint, device, OPTIONS)


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        (Gpu("NVIDIA GB10", 121, None), "gb10"),
        (Gpu("NVIDIA GB200", 100, 1), "gb200"),
        (Gpu("NVIDIA B200", 100, 1), "b200"),
        (Gpu("NVIDIA RTX PRO 6000 Blackwell Server Edition", 120, 1), "rtx6000-blackwell"),
    ],
)
def test_this_machines_gpu_is_recognised(gpu: Gpu, name: str) -> None:
    assert resolve_target("auto", Machine((gpu,))).name == name


def test_a_gpu_without_fp4_is_no_target() -> None:
    with pytest.raises(InvalidRequest, match=r"NVIDIA H200 \(SM 90\) is none of"):
        resolve_target("auto", Machine((Gpu("NVIDIA H200", 90, 1),)))


def test_compressed_tensors_nvfp4_is_converted_and_keeps_its_input_scales(golden: Path) -> None:
    conversion = plan(golden / "mistral-nvfp4-ct").conversion
    assert conversion is not None
    assert conversion.calibration is None


@pytest.mark.parametrize(
    ("logprobs", "flags"),
    [
        ("none", []),
        ("generated", ["--gather_generation_logits"]),
        ("all", ["--gather_generation_logits", "--gather_context_logits"]),
    ],
)
def test_an_engine_keeps_the_logits_that_were_asked_for(
    golden: Path, logprobs: str, flags: list[str]
) -> None:
    source = golden / "mixtral-nvfp4-modelopt"
    planned = plan(source, tensorrt_llm_version="1.2.1", logprobs=logprobs)
    assert [word for word in planned.argv if "gather" in word] == flags
    assert planned.options.logprobs == logprobs
    assert any("no log-probabilities" in note for note in planned.notes) == (not flags)
    without = plan(source, tensorrt_llm_version="1.2.1").budget.activation_bytes
    rows = planned.options.max_num_tokens - planned.options.max_batch_size
    more = rows * 320 * 4 if logprobs == "all" else 0
    assert planned.budget.activation_bytes - without == more
