"""Each field of SamplingParams in each release: it reaches the runtime, or the request is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.base import EngineOptions
from engines.errors import UnsupportedParameter
from engines.registry import create_engine
from engines.request import SamplingParams
from tests.support.fake_tensorrt_llm import VERSIONS, installed
from tests.support.generation import collect, make_request
from tests.support.gpu_machines import B200

PENALTIES = ("1.0.0", "1.3.0rc26", "1.4.0rc1")
SINCE_1_2 = tuple(version for version in VERSIONS if version not in ("1.0.0", "1.1.0"))
EOS = 2  # of the checkpoint

# A telling value of each field (with what else it needs), the releases that have it, and how it arrives.
Case = tuple[dict[str, Any], tuple[str, ...], Callable[[Any], bool]]
FIELDS: dict[str, Case] = {
    "max_tokens": ({"max_tokens": 5}, VERSIONS, lambda p: p.max_tokens == 5),
    "min_tokens": (
        {"min_tokens": 4, "ignore_eos": False},
        VERSIONS,
        lambda p: (p.min_tokens, p.end_id) == (4, EOS),
    ),
    "temperature": ({"temperature": 0.7}, VERSIONS, lambda p: p.temperature == 0.7 and p.top_p == 1.0),
    "top_k": ({"temperature": 1.0, "top_k": 7}, VERSIONS, lambda p: p.top_k == 7),
    "top_p": ({"temperature": 1.0, "top_p": 0.3}, VERSIONS, lambda p: p.top_p == 0.3),
    "min_p": (
        {"temperature": 1.0, "min_p": 0.2},
        tuple(version for version in VERSIONS if version != "1.1.0"),
        lambda p: p.min_p == 0.2,
    ),
    "presence_penalty": ({"presence_penalty": 0.5}, PENALTIES, lambda p: p.presence_penalty == 0.5),
    "frequency_penalty": ({"frequency_penalty": -0.5}, PENALTIES, lambda p: p.frequency_penalty == -0.5),
    "repetition_penalty": ({"repetition_penalty": 1.2}, PENALTIES, lambda p: p.repetition_penalty == 1.2),
    "seed": ({"temperature": 1.0, "seed": 77}, VERSIONS, lambda p: p.seed == 77),
    "logit_bias": (
        {"logit_bias": {11: -3.0}},
        VERSIONS,
        lambda p: p.embedding_bias.array[11] == -3.0 and not p.embedding_bias.array[12:].any(),
    ),
    "stop_token_ids": (
        {"stop_token_ids": frozenset({300}), "ignore_eos": False},
        VERSIONS,
        lambda p: (p.end_id, p.stop_token_ids, p.include_stop_str_in_output) == (EOS, [300], True),
    ),
    "ignore_eos": ({"ignore_eos": True}, VERSIONS, lambda p: p.ignore_eos is True and p.end_id == -1),
    "num_logprobs": ({"num_logprobs": 0}, VERSIONS, lambda p: p.logprobs == 1),
    "num_prompt_logprobs": ({"num_prompt_logprobs": 4}, SINCE_1_2, lambda p: p.prompt_logprobs == 4),
}
ELSEWHERE = {"grammar"}


def test_no_field_is_forgotten() -> None:
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert fields == set(FIELDS) | ELSEWHERE


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_field_arrives_or_is_refused(
    version: str, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
    with installed(version) as behaviour:
        engine = create_engine("trtllm", EngineOptions(golden / "mixtral-nvfp4-modelopt", max_model_len=64))
        await engine.start()
        try:
            for name, (sampling, versions, arrives) in FIELDS.items():
                num_received = len(behaviour.received)
                if version in versions:
                    await collect(engine, make_request(**sampling))
                    assert arrives(behaviour.received[num_received][1]), name
                else:
                    with pytest.raises(UnsupportedParameter):
                        await collect(engine, make_request(**sampling))
                    assert len(behaviour.received) == num_received, name
        finally:
            await engine.close()


async def test_off_is_not_mentioned(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that lacks a field must not stumble over its being switched off."""
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
    off = {"top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    with installed("1.1.0") as behaviour:
        engine = create_engine("trtllm", EngineOptions(golden / "mixtral-nvfp4-modelopt", max_model_len=64))
        await engine.start()
        try:
            await collect(engine, make_request(temperature=1.0, repetition_penalty=1.0, **off))
        finally:
            await engine.close()
        params = behaviour.received[-1][1]
    names = (
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "embedding_bias",
    )
    assert [getattr(params, name) for name in names] == [None] * 6
