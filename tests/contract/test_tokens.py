"""What is generated, how much of it, and why it ends."""

from __future__ import annotations

import pytest

from engines.base import Engine
from engines.request import FinishReason
from tests.contract.conftest import StartEngine
from tests.support.generation import collect, generate_ids, joined, make_prompt, make_request


@pytest.mark.parametrize("max_tokens", [1, 2, 17, 40])
async def test_max_tokens_is_exact_and_only_the_last_output_says_why(engine: Engine, max_tokens: int) -> None:
    outputs = await collect(engine, make_request(max_tokens=max_tokens))
    assert len(joined(outputs)) == max_tokens
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("num_prompt_tokens", [1, 15, 16, 17, 64, 65, 200])
async def test_prompts_of_any_length_give_tokens_of_the_vocabulary(
    engine: Engine, num_prompt_tokens: int
) -> None:
    token_ids = await generate_ids(engine, make_request(make_prompt(num_prompt_tokens), max_tokens=20))
    assert len(token_ids) == 20
    assert all(0 <= token_id < engine.info.vocab_size for token_id in token_ids)


async def test_greedy_decoding_repeats_itself(engine: Engine) -> None:
    prompt = make_prompt(40)
    runs = [await generate_ids(engine, make_request(prompt, max_tokens=24)) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


async def test_the_same_seed_gives_the_same_tokens(engine: Engine) -> None:
    sampling = {"temperature": 1.3, "top_k": 50, "top_p": 0.95, "seed": 1234, "max_tokens": 24}
    first = await generate_ids(engine, make_request(**sampling))
    assert await generate_ids(engine, make_request(**sampling)) == first


async def test_a_stop_token_ends_the_sequence_and_is_delivered(engine: Engine) -> None:
    tokens = await generate_ids(engine, make_request(max_tokens=16))
    stop_id = tokens[5]
    outputs = await collect(engine, make_request(max_tokens=16, stop_token_ids=frozenset({stop_id})))
    assert joined(outputs) == tokens[: tokens.index(stop_id) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_a_stop_token_in_the_last_place_is_a_stop(engine: Engine) -> None:
    tokens = await generate_ids(engine, make_request(max_tokens=16))
    max_tokens = tokens.index(tokens[5]) + 1
    request = make_request(max_tokens=max_tokens, stop_token_ids=frozenset({tokens[5]}))
    outputs = await collect(engine, request)
    assert len(joined(outputs)) == max_tokens
    assert outputs[-1].finish_reason is FinishReason.STOP


# With the bias a model chooses end-of-sequence as soon as it may; echo does so after one repetition.
TO_THE_END = {"max_tokens": 60, "ignore_eos": False}


async def test_end_of_sequence_ends_the_sequence_and_is_delivered(engine: Engine) -> None:
    eos_id = min(engine.info.eos_token_ids)
    outputs = await collect(engine, make_request(logit_bias={eos_id: 100.0}, **TO_THE_END))
    tokens = joined(outputs)
    assert tokens[-1] == eos_id
    assert tokens.count(eos_id) == 1
    assert len(tokens) < 60
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_ignore_eos_goes_on(engine: Engine) -> None:
    eos_id = min(engine.info.eos_token_ids)
    request = make_request(logit_bias={eos_id: 100.0}, **{**TO_THE_END, "ignore_eos": True})
    outputs = await collect(engine, request)
    assert len(joined(outputs)) == 60
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_no_end_before_min_tokens(engine: Engine) -> None:
    eos_id = min(engine.info.eos_token_ids)
    request = make_request(make_prompt(3), logit_bias={eos_id: 100.0}, min_tokens=9, **TO_THE_END)
    outputs = await collect(engine, request)
    tokens = joined(outputs)
    assert tokens.index(eos_id) == 9
    assert len(tokens) == 10
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_no_stop_token_before_min_tokens(engine: Engine) -> None:
    tokens = await generate_ids(engine, make_request(max_tokens=16))
    request = make_request(max_tokens=16, min_tokens=10, stop_token_ids=frozenset(tokens))
    outputs = await collect(engine, request)
    assert len(joined(outputs)) > 10
    assert not set(joined(outputs)[:10]) & set(tokens)


async def test_a_full_context_is_a_length(engine: Engine) -> None:
    max_model_len = engine.info.max_model_len
    outputs = await collect(engine, make_request(make_prompt(max_model_len - 5), max_tokens=100))
    assert len(joined(outputs)) == 5
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_the_longest_prompt_gets_one_token(engine: Engine) -> None:
    outputs = await collect(engine, make_request(make_prompt(engine.info.max_model_len - 1), max_tokens=100))
    assert len(joined(outputs)) == 1
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_cached_prompt_tokens_are_fewer_than_the_prompt(start_engine: StartEngine) -> None:
    engine = await start_engine(block_size=16)
    for num_prompt_tokens in (16, 32, 33):
        for _ in range(2):
            outputs = await collect(engine, make_request(make_prompt(num_prompt_tokens)))
            assert 0 <= outputs[-1].num_cached_tokens < num_prompt_tokens
            assert outputs[-1].num_cached_tokens % 16 == 0


async def test_prefix_caching_changes_no_token(start_engine: StartEngine) -> None:
    with_cache = await start_engine(prefix_caching=True)
    without = await start_engine(prefix_caching=False)
    for num_prompt_tokens in (48, 47, 64, 80):
        request = make_request(make_prompt(num_prompt_tokens), max_tokens=12)
        assert await generate_ids(with_cache, request) == await generate_ids(without, request)
        outputs = await collect(without, request)
        assert outputs[-1].num_cached_tokens == 0


async def test_totals_count_every_token(engine: Engine) -> None:
    before = engine.stats()
    for num_prompt_tokens, max_tokens in ((5, 3), (70, 11)):
        await collect(engine, make_request(make_prompt(num_prompt_tokens), max_tokens=max_tokens))
    after = engine.stats()
    assert after.num_prompt_tokens_total - before.num_prompt_tokens_total == 75
    assert after.num_generated_tokens_total - before.num_generated_tokens_total == 14
    assert after.num_steps_total > before.num_steps_total
