"""What is refused, with which error, and that nothing else happens."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engines.base import Engine
from engines.errors import InvalidRequest, PromptTooLong
from tests.support.generation import (
    collect,
    first_output,
    generate_ids,
    long_request,
    make_prompt,
    make_request,
)

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ()}, "prompt"),
    ({"prompt": (5, 320)}, "prompt"),
    ({"prompt": (-1, 5)}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1, "num_prompt_logprobs": 0}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"frequency_penalty": math.nan}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"logit_bias": {320: 1.0}}, "logit_bias"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ({"logit_bias": {5: 100.5}}, "logit_bias"),
    ({"logit_bias": {5: math.nan}}, "logit_bias"),
    ({"stop_token_ids": frozenset({320})}, "stop_token_ids"),
    ({"num_logprobs": -1}, "logprobs"),
    ({"num_logprobs": 21}, "logprobs"),
    ({"num_prompt_logprobs": -1}, "prompt_logprobs"),
    ({"num_prompt_logprobs": 21}, "prompt_logprobs"),
]


@pytest.mark.parametrize(("arguments", "param"), INVALID, ids=[str(arguments) for arguments, _ in INVALID])
async def test_an_invalid_request_is_refused_at_the_first_iteration(
    engine: Engine, arguments: dict[str, Any], param: str
) -> None:
    stream = engine.generate(make_request(**arguments))
    with pytest.raises(InvalidRequest) as caught:
        await first_output(stream)
    assert caught.value.param == param
    assert type(caught.value) is InvalidRequest
    assert len(await generate_ids(engine, make_request())) == 8


VALID: list[dict[str, Any]] = [
    {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"temperature": 2.0, "top_p": 1e-6, "top_k": 10_000, "min_p": 1.0},
    {"presence_penalty": 2.0, "frequency_penalty": -2.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 2**63 - 1},
    {"temperature": 1.0, "seed": -(2**63)},
    {"logit_bias": {0: 100.0, 319: -100.0}},
    {"stop_token_ids": frozenset({0, 319}), "min_tokens": 8},
    {"num_logprobs": 20, "num_prompt_logprobs": 20},
]


@pytest.mark.parametrize("arguments", VALID, ids=str)
async def test_the_limits_themselves_are_accepted(engine: Engine, arguments: dict[str, Any]) -> None:
    assert len(await generate_ids(engine, make_request(**arguments))) == 8


@pytest.mark.parametrize("num_too_many", [0, 1, 1000])
async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    engine: Engine, num_too_many: int
) -> None:
    max_model_len = engine.info.max_model_len
    num_tokens = max_model_len + num_too_many
    with pytest.raises(PromptTooLong, match=rf"\b{num_tokens}\b.*\b{max_model_len}\b") as caught:
        await collect(engine, make_request(make_prompt(num_tokens)))
    assert caught.value.param == "prompt"
    assert len(await generate_ids(engine, make_request())) == 8


async def test_an_id_in_flight_is_refused_and_the_first_goes_on(engine: Engine) -> None:
    expected = await generate_ids(engine, long_request(engine))
    request = long_request(engine)
    stream = engine.generate(request)
    tokens = list((await first_output(stream)).token_ids)
    with pytest.raises(InvalidRequest, match="already in use") as caught:
        await collect(engine, request)
    assert caught.value.param == "request_id"
    async for output in stream:
        tokens.extend(output.token_ids)
    assert tokens == expected
