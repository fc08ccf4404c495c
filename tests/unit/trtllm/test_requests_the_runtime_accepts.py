"""Whatever the service may send, the runtime is never given a form that it rejects."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.base import EngineOptions
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.registry import create_engine
from engines.request import GenerationRequest, SamplingParams
from tests.support.fake_tensorrt_llm import VERSIONS, installed
from tests.support.gpu_machines import B200
from tests.support.grammars import PERSON, regex, schema
from tests.unit.trtllm.test_built_directories import MANIFEST, engine_directory

TOKENS = st.integers(0, 319)
FRACTIONS = st.floats(0, 1)


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    """Any request that `check_request` accepts, within 64 tokens of context."""
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=40))
    scored = draw(st.none() | st.integers(0, 20))
    max_tokens = draw(st.integers(1 if scored is None else 0, 24))
    grammar = draw(st.sampled_from([None, None, regex("[a-f]{3,9}"), schema(PERSON)]))
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        temperature=draw(st.just(0.0) | st.floats(1e-6, 10)),
        top_k=draw(st.integers(0, 400)),
        top_p=draw(st.floats(0, 1, exclude_min=True)),
        min_p=draw(st.just(0.0) | FRACTIONS),
        presence_penalty=draw(st.just(0.0) | st.floats(-2, 2)),
        frequency_penalty=draw(st.just(0.0) | st.floats(-2, 2)),
        repetition_penalty=draw(st.just(1.0) | st.floats(0.1, 3)),
        seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        logit_bias=draw(st.dictionaries(TOKENS, st.floats(-100, 100), max_size=3)),
        stop_token_ids=frozenset(draw(st.lists(TOKENS, max_size=3))),
        ignore_eos=grammar is None and draw(st.booleans()),
        num_logprobs=draw(st.none() | st.integers(0, 20)),
        num_prompt_logprobs=scored,
        grammar=grammar,
    )
    return GenerationRequest("r", tuple(prompt), sampling, draw(st.integers(-(2**31), 2**31)))


@pytest.mark.parametrize(
    ("version", "is_engine"),
    [("1.0.0", False), ("1.2.1", False), ("1.4.0rc1", False), ("1.0.0", True), ("1.2.1", True)],
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(batch=st.lists(requests(), min_size=1, max_size=4))
def test_no_valid_request_is_rejected(
    version: str,
    is_engine: bool,
    batch: list[GenerationRequest],
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal by us (UnsupportedParameter, too many log-probabilities) is fine; the runtime's is not."""
    machine = replace(B200, tensorrt_llm_version=version)
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: machine)
    directory = golden / "mixtral-nvfp4-modelopt"
    if is_engine:  # of trtllm-build, with all log-probabilities
        options = replace(MANIFEST.options, logprobs="all")
        manifest = replace(MANIFEST, tensorrt_llm_version=version, machine=machine, options=options)
        directory = engine_directory(tmp_path, manifest)

    async def run() -> None:
        with installed(version):
            options = EngineOptions(directory, max_model_len=64)
            engine = create_engine("trtllm", options)
            await engine.start()
            try:
                for request in batch:
                    await check(engine, request)
            finally:
                await engine.close()

    asyncio.run(run())


async def check(engine: object, request: GenerationRequest) -> None:
    sampling = request.sampling
    tokens: list[int] = []
    try:
        async for output in engine.generate(request):
            tokens.extend(output.token_ids)
            assert output.logprobs is None or len(output.logprobs) == len(output.token_ids)
    except UnsupportedParameter:
        return
    except InvalidRequest as error:
        if "expected 0 to 0" not in str(error):
            raise
        return
    assert len(tokens) <= sampling.max_tokens
    stops = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else engine.info.eos_token_ids)
    assert not stops & set(tokens[: sampling.min_tokens])
    assert not stops & set(tokens[:-1])


def test_versions_are_those_of_the_fake() -> None:
    assert {"1.0.0", "1.2.1", "1.4.0rc1"} <= set(VERSIONS)
