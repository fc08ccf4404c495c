"""Log-probabilities: how many, of what, in which order."""

from __future__ import annotations

import math

import pytest

from engines.base import Engine
from engines.request import FinishReason, TokenLogprob, TokenOutput
from tests.support.generation import collect, generate_ids, joined, make_prompt, make_request


def entries_of(outputs: list[TokenOutput]) -> list[TokenLogprob]:
    return [entry for output in outputs for entry in output.logprobs or ()]


def check_entry(entry: TokenLogprob, token_id: int, num_top: int, vocab_size: int) -> None:
    assert entry.token_id == token_id
    assert -math.inf < entry.logprob <= 0
    assert 1 <= entry.rank <= vocab_size
    top_ids = [top_id for top_id, _ in entry.top]
    top_logprobs = [logprob for _, logprob in entry.top]
    assert len(entry.top) == len(set(top_ids)) == num_top
    assert all(0 <= top_id < vocab_size for top_id in top_ids)
    assert top_logprobs == sorted(top_logprobs, reverse=True)
    assert sum(math.exp(logprob) for logprob in top_logprobs) <= 1 + 1e-4
    if token_id in top_ids:
        assert dict(entry.top)[token_id] == entry.logprob
    elif num_top:
        assert entry.logprob <= top_logprobs[-1]
        assert entry.rank >= num_top


async def test_none_are_given_unasked(engine: Engine) -> None:
    for output in await collect(engine, make_request()):
        assert output.logprobs is None
        assert output.prompt_logprobs is None


@pytest.mark.parametrize("num_logprobs", [0, 1, 5, 20])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_each_token_has_one_entry(engine: Engine, num_logprobs: int, temperature: float) -> None:
    request = make_request(max_tokens=12, num_logprobs=num_logprobs, temperature=temperature, seed=7)
    outputs = await collect(engine, request)
    for output in outputs:
        assert len(output.logprobs or ()) == len(output.token_ids)
    tokens = joined(outputs)
    assert len(tokens) == 12
    for entry, token_id in zip(entries_of(outputs), tokens, strict=True):
        check_entry(entry, token_id, num_logprobs, engine.info.vocab_size)


async def test_the_greedy_token_is_the_likeliest(engine: Engine) -> None:
    outputs = await collect(engine, make_request(max_tokens=12, num_logprobs=3))
    for entry in entries_of(outputs):
        assert entry.rank == 1
        assert entry.top[0] == (entry.token_id, entry.logprob)


async def test_asking_changes_no_token(engine: Engine) -> None:
    plain = await generate_ids(engine, make_request(max_tokens=12))
    asked = await generate_ids(engine, make_request(max_tokens=12, num_logprobs=5, num_prompt_logprobs=5))
    assert asked == plain


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 16, 33, 64, 65, 150])
@pytest.mark.parametrize("num_prompt_logprobs", [0, 4])
async def test_each_prompt_token_but_the_first_has_one_entry(
    engine: Engine, num_prompt_tokens: int, num_prompt_logprobs: int
) -> None:
    prompt = make_prompt(num_prompt_tokens)
    request = make_request(prompt, num_prompt_logprobs=num_prompt_logprobs)
    outputs = await collect(engine, request)
    assert [output.prompt_logprobs for output in outputs[1:]] == [None] * (len(outputs) - 1)
    entries = outputs[0].prompt_logprobs
    assert entries is not None
    assert len(entries) == num_prompt_tokens
    assert entries[0] is None
    for entry, token_id in zip(entries[1:], prompt[1:], strict=True):
        assert entry is not None
        check_entry(entry, token_id, num_prompt_logprobs, engine.info.vocab_size)


async def test_prompt_entries_are_the_same_the_second_time(engine: Engine) -> None:
    prompt = make_prompt(50)
    first, second = [
        (await collect(engine, make_request(prompt, num_prompt_logprobs=2)))[0].prompt_logprobs
        for _ in range(2)
    ]
    assert first == second


async def test_a_prompt_that_fills_the_context_can_be_scored(engine: Engine) -> None:
    prompt = make_prompt(engine.info.max_model_len)
    outputs = await collect(engine, make_request(prompt, max_tokens=0, num_prompt_logprobs=0))
    assert joined(outputs) == []
    assert outputs[0].prompt_logprobs is not None
    assert len(outputs[0].prompt_logprobs) == len(prompt)


async def test_a_prompt_can_be_scored_without_generating(engine: Engine) -> None:
    prompt = make_prompt(40)
    scored = await collect(engine, make_request(prompt, max_tokens=0, num_prompt_logprobs=1))
    assert joined(scored) == []
    assert scored[-1].finish_reason is FinishReason.LENGTH
    generated = await collect(engine, make_request(prompt, max_tokens=1, num_prompt_logprobs=1))
    assert scored[0].prompt_logprobs == generated[0].prompt_logprobs
