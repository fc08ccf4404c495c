"""Log-probabilities of engines made by trtllm-build: those of the logits they were built to keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.base import Engine
from engines.errors import GenerationFailed, InvalidRequest, PromptTooLong, UnsupportedParameter
from engines.request import TokenLogprob
from engines.trtllm import sampling
from engines.trtllm.output_mapping import score_prompt
from tests.support.fake_tensorrt_llm import Behaviour, installed
from tests.support.fake_tensorrt_llm.torch_module import Tensor
from tests.support.generation import collect, joined, make_request
from tests.support.gpu_machines import B200
from tests.unit.trtllm.test_built_directories import MANIFEST, engine_directory, engine_on

PROMPT = tuple(range(40, 90))


@asynccontextmanager
async def serving(
    logprobs: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> AsyncIterator[tuple[Engine, Behaviour]]:
    machine = replace(B200, tensorrt_llm_version=version)
    manifest = replace(
        MANIFEST,
        tensorrt_llm_version=version,
        machine=machine,
        options=replace(MANIFEST.options, logprobs=logprobs),
    )
    with installed(version) as behaviour:
        engine = engine_on(machine, engine_directory(tmp_path, manifest), monkeypatch, **options)
        await engine.start()
        try:
            yield engine, behaviour
        finally:
            await engine.close()


@pytest.mark.parametrize(("version", "num_top"), [("1.0.0", 0), ("1.1.0", 0), ("1.2.1", 5)])
async def test_generated_tokens_have_theirs_at_the_end(
    version: str, num_top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("generated", version, tmp_path, monkeypatch) as (engine, behaviour):
        outputs = await collect(engine, make_request(max_tokens=6, num_logprobs=num_top))
        entries = [entry for output in outputs for entry in output.logprobs or ()]
        assert [entry.token_id for entry in entries] == joined(outputs)
        assert [len(entry.top) for entry in entries] == [num_top] * 6
        assert [entry.rank for entry in entries] == [1] * 6
        _, _, is_streamed = behaviour.received[-1]
        assert not is_streamed
        assert behaviour.llms[0].args.gather_generation_logits is True
        with pytest.raises(UnsupportedParameter, match="--logprobs all"):
            await collect(engine, make_request(num_prompt_logprobs=0))


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_the_top_of_old_releases_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("generated", version, tmp_path, monkeypatch) as (engine, _):
        with pytest.raises(InvalidRequest, match="0 to 0"):
            await collect(engine, make_request(num_logprobs=1))


@pytest.mark.parametrize("num_logprobs", [0, 5])
async def test_an_engine_without_logits_says_how_to_get_them(
    num_logprobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("none", "1.2.1", tmp_path, monkeypatch) as (engine, behaviour):
        num_received = len(behaviour.received)
        with pytest.raises(UnsupportedParameter, match="nybble build --logprobs") as caught:
            await collect(engine, make_request(num_logprobs=num_logprobs))
        assert caught.value.param == "logprobs"
        assert len(behaviour.received) == num_received


async def test_a_prompt_is_scored_from_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("all", "1.2.1", tmp_path, monkeypatch) as (engine, behaviour):
        request = make_request(PROMPT, max_tokens=2, num_prompt_logprobs=3)
        first, second = [(await collect(engine, request))[0].prompt_logprobs for _ in range(2)]
        assert first == second  # nothing of it may come from the prefix cache
        assert behaviour.received[-1][1].return_context_logits is True
        executor = behaviour.llms[0]._executor
    assert first is not None
    assert first[0] is None
    assert len(first) == len(PROMPT)
    for end in range(1, len(PROMPT)):
        check(first[end], executor._logits(list(PROMPT[:end])).astype(np.float32), PROMPT[end])


def check(entry: TokenLogprob | None, logits: np.ndarray, token_id: int) -> None:
    assert entry is not None
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    best = np.argsort(-logits)[:3]
    assert entry.token_id == token_id
    assert entry.logprob == pytest.approx(float(expected[token_id]), abs=1e-5)
    assert entry.rank == 1 + int((logits > logits[token_id]).sum())
    assert [top_id for top_id, _ in entry.top] == best.tolist()


@pytest.mark.parametrize(("prefix_caching", "is_supported"), [(True, False), (False, True)])
async def test_without_a_salt_the_prefix_cache_stands_in_the_way(
    prefix_caching: bool, is_supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"prefix_caching": prefix_caching}
    async with serving("all", "1.1.0", tmp_path, monkeypatch, **options) as (engine, _):
        request = make_request(PROMPT, max_tokens=0, num_prompt_logprobs=0)
        if is_supported:
            assert len((await collect(engine, request))[0].prompt_logprobs or ()) == len(PROMPT)
        else:
            with pytest.raises(UnsupportedParameter, match="--no-prefix-caching"):
                await collect(engine, request)


async def test_too_many_logits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_PROMPT_LOGITS_BYTES", 49 * 320 * 4)
    async with serving("all", "1.2.1", tmp_path, monkeypatch) as (engine, _):
        with pytest.raises(PromptTooLong, match=r"at most 49$"):
            await collect(engine, make_request(PROMPT, num_prompt_logprobs=0))
        assert len(joined(await collect(engine, make_request(PROMPT)))) == 8


@pytest.mark.parametrize("shape", [(2, 320), (3, 319), (3, 1, 320)])
def test_logits_that_do_not_fit_fail_the_request(shape: tuple[int, ...]) -> None:
    with pytest.raises(GenerationFailed, match=r"expected \(3, 320\)"):
        score_prompt(Tensor(np.zeros(shape, np.float32)), (1, 2, 3), 320, 0)
    with pytest.raises(GenerationFailed, match="got none"):
        score_prompt(None, (1, 2, 3), 320, 0)
