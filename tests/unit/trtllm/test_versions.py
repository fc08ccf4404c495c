"""What differs between releases, and that the engine keeps to it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines.base import Engine, EngineOptions
from engines.errors import InvalidRequest, MissingExtra, StartFailed, UnsupportedParameter
from engines.registry import create_engine
from engines.request import FinishReason
from engines.trtllm import runtime
from engines.trtllm.machine import Machine
from engines.trtllm.versions import features_of, features_of_tensorrt_engine
from tests.support.fake_tensorrt_llm import VERSIONS, Behaviour, installed
from tests.support.generation import collect, first_output, joined, make_request
from tests.support.gpu_machines import B200, GB10, H100, NO_GPU

PENALTIES = {"1.0.0", "1.3.0rc26", "1.4.0rc1"}
SINCE_1_2 = set(VERSIONS) - {"1.0.0", "1.1.0"}


@asynccontextmanager
async def started(
    version: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine = B200,
    **options: object,
) -> AsyncIterator[tuple[Engine, Behaviour]]:
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: machine)
    with installed(version) as behaviour:
        engine = create_engine("trtllm", EngineOptions(checkpoint, max_model_len=256, **options))
        try:
            await engine.start()
            yield engine, behaviour
        finally:
            await engine.close()


@pytest.fixture
def checkpoint(golden: Path) -> Path:
    return golden / "mixtral-nvfp4-modelopt"


@pytest.mark.parametrize(("asked", "told"), [("auto", "auto"), ("bfloat16", "auto"), ("fp8", "fp8")])
async def test_the_kv_cache_takes_the_type_it_is_given(
    asked: str, told: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime knows no "bfloat16", which is what "auto" is without a declaration in the checkpoint."""
    async with started("1.2.1", checkpoint, monkeypatch, kv_cache_dtype=asked) as (_, behaviour):
        assert behaviour.llms[0].args.kv_cache_config.dtype == told


async def test_a_kv_cache_that_the_checkpoint_declares_cannot_be_bfloat16(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "calibrated"
    shutil.copytree(checkpoint, directory)
    file = directory / "hf_quant_config.json"
    file.write_text(file.read_text().replace('"kv_cache_quant_algo": null', '"kv_cache_quant_algo": "FP8"'))
    async with started("1.2.1", directory, monkeypatch) as (_, behaviour):
        assert behaviour.llms[0].args.kv_cache_config.dtype == "auto"
    with pytest.raises(StartFailed, match="declares a KV cache in FP8, and TensorRT-LLM follows it"):
        async with started("1.2.1", directory, monkeypatch, kv_cache_dtype="bfloat16"):
            pytest.fail("it started")


async def test_a_release_without_the_choice_refuses_an_fp8_kv_cache(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartFailed, match=r"TensorRT-LLM 1\.0\.0 cannot be told"):
        async with started("1.0.0", checkpoint, monkeypatch, kv_cache_dtype="fp8"):
            pytest.fail("it started")


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_release_generates(
    version: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(version, checkpoint, monkeypatch) as (engine, _):
        outputs = await collect(engine, make_request(max_tokens=12))
        assert len(joined(outputs)) == 12
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert dict(engine.info.details)["tensorrt_llm"] == version
        sampled = make_request(
            max_tokens=6, temperature=1.2, top_p=0.9, top_k=20, seed=3, logit_bias={5: 4.0}
        )
        assert joined(await collect(engine, sampled)) == joined(await collect(engine, sampled))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("sampling", "param", "supported"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty", PENALTIES),
        ({"frequency_penalty": 0.5}, "frequency_penalty", PENALTIES),
        ({"repetition_penalty": 1.1}, "repetition_penalty", PENALTIES),
        ({"min_p": 0.1, "temperature": 1.0}, "min_p", set(VERSIONS) - {"1.1.0"}),
        ({"num_prompt_logprobs": 0}, "prompt_logprobs", SINCE_1_2),
    ],
)
async def test_what_a_release_would_ignore_is_refused(
    version: str,
    sampling: dict[str, float],
    param: str,
    supported: set[str],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(version, checkpoint, monkeypatch) as (engine, _):
        if version in supported:
            assert len(joined(await collect(engine, make_request(**sampling)))) == 8
        else:
            with pytest.raises(UnsupportedParameter) as caught:
                await collect(engine, make_request(**sampling))
            assert caught.value.param == param


@pytest.mark.parametrize("version", VERSIONS)
async def test_logprobs_come_with_their_tokens(
    version: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(version, checkpoint, monkeypatch) as (engine, behaviour):
        outputs = await collect(engine, make_request(max_tokens=40, num_logprobs=0))
        entries = [entry for output in outputs for entry in output.logprobs or ()]
        assert [entry.token_id for entry in entries] == joined(outputs)
        _, _, is_streamed = behaviour.received[-1]
        assert is_streamed == (version in SINCE_1_2)
        if version not in SINCE_1_2:
            with pytest.raises(InvalidRequest, match="0 to 0"):
                await collect(engine, make_request(num_logprobs=1))


async def test_a_request_without_a_seed_gets_one_of_its_own(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started("1.4.0rc1", checkpoint, monkeypatch) as (engine, behaviour):
        for _ in range(2):
            await collect(engine, make_request(temperature=1.0))
        seeds = [params.seed for _, params, _ in behaviour.received[-2:]]
        assert None not in seeds
        assert seeds[0] != seeds[1]


async def test_several_stop_tokens_before_min_tokens_take_two_calls(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started("1.4.0rc1", checkpoint, monkeypatch) as (engine, behaviour):
        before = len(behaviour.received)
        request = make_request(max_tokens=20, min_tokens=7, stop_token_ids=frozenset({5, 6}))
        outputs = await collect(engine, request)
        (first_prompt, first, _), (second_prompt, second, _) = behaviour.received[before:]
        assert first.max_tokens == 7
        assert set(first.embedding_bias.array[[5, 6]]) == {-1e9}
        assert second.embedding_bias is None
        assert second_prompt == [*first_prompt, *joined(outputs)[:7]]
        assert second.max_tokens == 13
        assert engine.stats().num_prompt_tokens_total == 8
        refused = make_request(min_tokens=2, stop_token_ids=frozenset({5, 6}), presence_penalty=1.0)
        with pytest.raises(UnsupportedParameter, match="several stop tokens"):
            await collect(engine, refused)


@pytest.mark.parametrize("position", [0, 1])
async def test_each_of_several_stop_tokens_is_delivered(
    position: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime cuts off those that are not its one end id, unless it is told not to."""
    async with started("1.2.1", checkpoint, monkeypatch) as (engine, _):
        tokens = joined(await collect(engine, make_request(max_tokens=8)))
        unused = [token_id for token_id in (3, 319) if token_id not in tokens][position]
        stop = frozenset({tokens[4], unused})
        outputs = await collect(engine, make_request(max_tokens=8, stop_token_ids=stop))
        assert joined(outputs) == tokens[: tokens.index(tokens[4]) + 1]
        assert outputs[-1].finish_reason is FinishReason.STOP


async def test_the_gpus_wishes_reach_the_runtime(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.trtllm.memory_guard.available_memory_bytes", lambda: 100 << 30)
    async with started("1.2.1", checkpoint, monkeypatch, GB10, block_size=64) as (engine, behaviour):
        args = behaviour.llms[0].args
        assert args.moe_config.backend == "CUTLASS"
        assert args.disable_overlap_scheduler is True
        assert args.cuda_graph_config.enable_padding is True
        assert args.enable_iter_perf_stats is True
        assert args.nvfp4_gemm_config.allowed_backends == ["cublaslt"]
        assert args.kv_cache_config.tokens_per_block == engine.info.block_size == 64
        assert args.kv_cache_config.max_tokens == 64 * 256
        assert engine.info.num_blocks == 256
    async with started("1.3.0rc26", checkpoint, monkeypatch, GB10) as (_, behaviour):
        assert behaviour.llms[0].args.nvfp4_gemm_config.allowed_backends == ["cutlass"]
    async with started("1.3.0rc26", checkpoint, monkeypatch, B200, tensor_parallel_size=2) as (_, behaviour):
        assert behaviour.llms[0].args.disable_overlap_scheduler is False
        assert behaviour.llms[0].args.tensor_parallel_size == 2


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        (NO_GPU, {}, "needs an NVIDIA GPU"),
        (H100, {}, "no FP4 tensor cores"),
        (GB10, {"tensor_parallel_size": 2}, "this machine has 1 GPUs"),
        (B200, {"tensor_parallel_size": 3}, "divisor of the model's 2 KV heads"),
        (B200, {"activations": "bf16"}, "--engine cpu"),
        (B200, {"kv_cache_memory_bytes": 1000}, "expected at least one context"),
        (B200, {"block_size": 48}, "power of two"),
    ],
)
async def test_what_cannot_work_is_refused_before_loading(
    machine: Machine,
    options: dict[str, object],
    message: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StartFailed, match=message):
        async with started("1.4.0rc1", checkpoint, monkeypatch, machine, **options):
            pytest.fail("it started")


async def test_without_the_package_the_message_says_how_to_get_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
    engine = create_engine("trtllm", EngineOptions(checkpoint))
    with pytest.raises(MissingExtra, match="pip install"):
        await engine.start()
    await engine.close()


async def test_telemetry_is_off(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(runtime.os, "environ", environment)
    with installed("1.4.0rc1"):
        runtime.load_runtime()
    assert environment["TRTLLM_NO_USAGE_STATS"] == "1"


async def test_a_request_given_up_by_its_reader_is_aborted_in_the_runtime(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started("1.0.0", checkpoint, monkeypatch) as (engine, behaviour):
        stream = engine.generate(make_request(max_tokens=200))
        await first_output(stream)
        await stream.aclose()
        assert behaviour.results[-1].aborted()


@pytest.mark.parametrize("version", ["0.21.0", "1.5.0", "2.0", "main"])
def test_other_releases_are_refused(version: str) -> None:
    with pytest.raises(StartFailed, match=r"1\.0\.0 to 1\.4"):
        features_of(version)


def test_priority_came_after_the_tensorrt_backend_went() -> None:
    assert not features_of("1.3.0rc20").priority
    assert features_of("1.3.0rc20").tensorrt_engines
    assert features_of("1.3.0rc21").priority
    assert not features_of("1.3.0rc21").tensorrt_engines
    engine = features_of_tensorrt_engine(features_of("1.2.1"), "none", prefix_caching=True)
    assert not engine.logprobs
    assert engine.penalties
