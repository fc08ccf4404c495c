"""The roofline by hand: Mixtral-8x7B in NVFP4, and small checkpoints whose bytes are counted in the files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.capacity import cpu_device as cpu_device_module
from engines.capacity.ceilings import capacity, decode_ceiling, kv_cache_bytes, prefill_ceiling
from engines.capacity.cpu_device import CpuMeasurement, cpu_device, measured_device
from engines.capacity.devices import GPUS, Device, gpu_named
from engines.capacity.model_cost import LayerCost, ModelCost, model_cost
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.inspection import inspect
from engines.checkpoint.tensors import Fp4Tensors
from engines.cpu import kernels
from engines.cpu.kv_cache import KvCacheShape
from engines.errors import InvalidRequest
from tests.support.random_checkpoint import RandomCheckpoint

# Mixtral-8x7B: 32 layers of 4096, 8 KV heads of 128, 8 experts of 14336, vocabulary 32000.
_ATTENTION = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2)
_EXPERTS = 32 * 8 * 3 * 4096 * 14336
_DENSE = 32 * (8 * 4096 + 2 * 4096) + 4096
MIXTRAL = ModelCost(
    always=LayerCost(_ATTENTION * 9 // 16 + _DENSE * 2, _ATTENTION, _DENSE),
    head=LayerCost(32000 * 4096 * 2, 0, 32000 * 4096),
    experts=LayerCost(_EXPERTS * 9 // 16, _EXPERTS, 0),
    num_experts=8,
    num_experts_per_token=2,
    embedding_bytes=32000 * 4096 * 2,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=32768,
)
KV_BYTES = 131072
# Nothing is free on it but rounding: one byte and one operation a second each.
SLOW = Device("slow", "slow", 100, 10**15, 1.0, 1.0, 1.0)


def test_mixtral_weighs_what_it_does() -> None:
    assert MIXTRAL.kv_bytes_per_token("bfloat16") == KV_BYTES == 2 * MIXTRAL.kv_bytes_per_token("fp8")
    assert MIXTRAL.resident_bytes / 1e9 == pytest.approx(26.6, abs=0.1)


def test_an_fp8_cache_on_the_cpu_has_a_scale_for_each_row() -> None:
    cpu = replace(gpu_named("gb10"), sm=None)
    per_token = {
        (device.sm, dtype): capacity(
            MIXTRAL, device, kv_cache_dtype=dtype, contexts=(1024,), batch_sizes=(1,)
        ).kv_bytes_per_token
        for device in (cpu, gpu_named("gb10"))
        for dtype in ("bfloat16", "fp8")
    }
    assert per_token == {
        (None, "bfloat16"): KV_BYTES,
        (None, "fp8"): 32 * 8 * 2 * 129,
        (121, "bfloat16"): KV_BYTES,
        (121, "fp8"): KV_BYTES // 2,
    }


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "fp8"])
def test_the_plan_counts_the_bytes_that_the_cpu_engine_takes(tmp_path: Path, kv_cache_dtype: str) -> None:
    checkpoint = Checkpoint.open(RandomCheckpoint().write(tmp_path / "model"))
    shape = KvCacheShape.of(checkpoint.config, 16, reference_numerics=False, kv_cache_dtype=kv_cache_dtype)
    cost = model_cost(checkpoint, as_nvfp4=False)
    assert 16 * cost.kv_bytes_per_token(kv_cache_dtype, has_row_scales=True) == shape.block_bytes


def test_one_sequence_reads_two_experts_of_eight() -> None:
    gb10 = gpu_named("gb10")
    ceiling = decode_ceiling(MIXTRAL, gb10, 1, 4096, KV_BYTES, 10**9)
    read = _ATTENTION * 9 / 16 + _DENSE * 2 + 32000 * 4096 * 2 + _EXPERTS * 9 / 16 / 4 + 4096 * KV_BYTES
    assert ceiling.bound == "bandwidth"
    assert ceiling.tokens_per_second == pytest.approx(273e9 / read)
    assert 33 < ceiling.tokens_per_second < 36


def test_many_sequences_read_nearly_all_experts() -> None:
    assert MIXTRAL.touched_share(1) == 0.25
    assert MIXTRAL.touched_share(2) == 1 - 0.75**2
    assert MIXTRAL.touched_share(64) == pytest.approx(1.0)
    dense = replace(MIXTRAL, num_experts=0, num_experts_per_token=0, experts=LayerCost())
    assert dense.touched_share(5) == 0.0


def test_arithmetic_binds_when_it_is_slower() -> None:
    instant = replace(SLOW, bandwidth=math.inf)
    ceiling = decode_ceiling(MIXTRAL, instant, 3, 100, KV_BYTES, 10**9)
    used = _ATTENTION + _EXPERTS / 4 + _DENSE + 32000 * 4096
    operations = 3 * (2 * used + 4 * 32 * 32 * 128 * 100)
    assert ceiling.bound == "arithmetic"
    assert ceiling.tokens_per_second == pytest.approx(3 / operations)


def test_a_prompt_samples_once_and_sees_half_of_itself() -> None:
    instant = replace(SLOW, bandwidth=math.inf)
    ceiling = prefill_ceiling(MIXTRAL, instant, 1000, KV_BYTES)
    operations = 2 * 1000 * (_ATTENTION + _EXPERTS / 4 + _DENSE) + 2 * 32000 * 4096
    operations += 4 * 32 * 32 * 128 * 1000 * 1000 / 2
    assert ceiling.seconds == pytest.approx(operations)
    assert ceiling.tokens_per_second == pytest.approx(1000 / operations)


def test_a_long_prompt_reads_the_weights_once_a_step() -> None:
    fast = replace(SLOW, fp4_flops=math.inf, bf16_flops=math.inf)
    weights = MIXTRAL.always.num_bytes + MIXTRAL.experts.num_bytes * MIXTRAL.touched_share(8192)
    ceiling = prefill_ceiling(MIXTRAL, fast, 20000, KV_BYTES)
    expected = MIXTRAL.head.num_bytes + 3 * (weights + 20000 * KV_BYTES / 2)
    assert ceiling.bound == "bandwidth"
    assert ceiling.seconds == pytest.approx(expected)


def test_what_the_weights_leave_goes_to_the_cache() -> None:
    gigabyte = 10**9
    device = replace(gpu_named("gb200"), memory_bytes=100 * gigabyte)
    left = 100 * gigabyte - MIXTRAL.resident_bytes
    assert kv_cache_bytes(MIXTRAL, device, 1) == int((left - 3 * 1024**3) * 0.9)
    assert kv_cache_bytes(MIXTRAL, replace(device, unified_memory=True), 1) == int(
        (left - 11 * 1024**3) * 0.9
    )
    assert kv_cache_bytes(MIXTRAL, replace(device, sm=None), 1) == left // 2
    assert kv_cache_bytes(MIXTRAL, replace(device, memory_bytes=gigabyte), 1) == 0


def test_two_devices_have_twice_of_everything() -> None:
    gb200 = gpu_named("gb200")
    asked = {"contexts": (4096,), "batch_sizes": (1,)}
    one, two = (capacity(MIXTRAL, gb200, num_devices=number, **asked) for number in (1, 2))
    assert two.decode[0].tokens_per_second == pytest.approx(2 * one.decode[0].tokens_per_second)
    assert two.memory_bytes == 2 * one.memory_bytes
    assert two.num_sequences[0] == two.num_kv_tokens // 4096 > 2 * one.num_sequences[0]


def test_more_sequences_than_fit_are_marked() -> None:
    small = replace(gpu_named("gb200"), memory_bytes=MIXTRAL.resident_bytes + 4 * 1024**3)
    report = capacity(MIXTRAL, small, contexts=(4096,), batch_sizes=(1, 128))
    assert [ceiling.fits for ceiling in report.decode] == [True, False]


@pytest.mark.parametrize("layout", ["mxfp4", "nvfp4", "modelopt", "plain"])
@pytest.mark.parametrize("num_experts", [0, 4])
def test_bytes_are_those_in_the_files(layout: str, num_experts: int, tmp_path: Path) -> None:
    architecture = "MixtralForCausalLM" if num_experts else "MistralForCausalLM"
    source = RandomCheckpoint(layout=layout, num_experts=num_experts, architecture=architecture)
    stored = inspect(source.write(tmp_path)).stored_bytes
    cost = model_cost(Checkpoint.open(tmp_path), as_nvfp4=False)
    num_factors = 8 * sum(name.endswith(("weight_scale_2", "weight_global_scale")) for name in source.tensors)
    assert cost.resident_bytes == stored.total - num_factors
    assert (cost.experts.num_bytes > 0) == (num_experts > 0)


def test_mxfp4_on_a_gpu_costs_what_its_transcode_does(golden: Path) -> None:
    mxfp4, nvfp4 = (Checkpoint.open(golden / f"mistral-{name}-ct") for name in ("mxfp4", "nvfp4"))
    assert model_cost(mxfp4, as_nvfp4=True) == model_cost(nvfp4, as_nvfp4=True)
    assert model_cost(mxfp4, as_nvfp4=False).resident_bytes < model_cost(nvfp4, as_nvfp4=False).resident_bytes


def bytes_saved(scales: NDArray[np.int_]) -> int:
    """By 16 rows of scale bytes, none of them extreme: two bytes instead of one for each of four blocks."""
    num_rows, num_blocks = scales.shape
    superblocks = np.split(scales, range(4, num_blocks, 4), axis=1)
    shared = all((np.ptp(superblock, axis=1) <= 3).all() for superblock in superblocks)
    return num_rows * (num_blocks - 2 * len(superblocks)) if shared else 0


def test_less_is_read_than_stored_where_exponents_are_shared(golden: Path) -> None:
    mxfp4, nvfp4 = (Checkpoint.open(golden / f"mistral-{name}-ct") for name in ("mxfp4", "nvfp4"))
    saved = 0
    for module in mxfp4.modules():
        if isinstance(module, Fp4Tensors):
            panels = np.split(module.scales.astype(int), range(16, module.num_rows, 16))
            saved += sum(bytes_saved(panel) for panel in panels)
    stored, read = (model_cost(mxfp4, as_nvfp4=False, as_read=as_read) for as_read in (False, True))
    assert saved > 0
    assert stored.always.num_bytes - read.always.num_bytes == saved
    assert replace(read, always=stored.always) == stored
    assert model_cost(nvfp4, as_nvfp4=False, as_read=True) == model_cost(nvfp4, as_nvfp4=False)


def test_a_tied_head_is_read_and_stored_once(tmp_path: Path) -> None:
    tied = model_cost(
        Checkpoint.open(RandomCheckpoint(tie_word_embeddings=True).write(tmp_path / "tied")), as_nvfp4=False
    )
    own = model_cost(Checkpoint.open(RandomCheckpoint().write(tmp_path / "own")), as_nvfp4=False)
    assert tied.head == own.head
    assert (tied.embedding_bytes, own.embedding_bytes) == (0, own.head.num_bytes)


def test_devices_are_told_apart_by_name() -> None:
    assert [gpu_named(device.name) for device in GPUS] == list(GPUS)
    with pytest.raises(InvalidRequest, match="'h100' is unknown; expected one of: gb10"):
        gpu_named("h100")


def test_a_measurement_replaces_the_rules_of_thumb() -> None:
    device = measured_device(cpu_device(), CpuMeasurement(7e9, 3e11, 5e10))
    assert (device.bandwidth, device.fp4_flops, device.bf16_flops) == (7e9, 3e11, 5e10)


@pytest.mark.parametrize("isa", ["amx", "avx512-zen", "avx512", "avx512-vnni", "avx2"])
def test_paper_knows_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_device_module, "_clock_hertz", lambda: 1e9)
    monkeypatch.setattr(kernels, "isa_name", lambda: "plain")
    plain = cpu_device()
    monkeypatch.setattr(kernels, "isa_name", lambda: isa)
    device = cpu_device()
    assert device.fp4_flops > plain.fp4_flops
    assert device.bf16_flops > plain.bf16_flops
