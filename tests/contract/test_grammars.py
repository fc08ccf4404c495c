"""Output held to a grammar, by the engines that can; the others refuse it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engines.base import Engine
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.request import FinishReason, Grammar, GrammarKind, TokenOutput
from tests.contract.conftest import StartEngine
from tests.support.generation import collect, generate_ids, joined, make_prompt, make_request, wait_until
from tests.support.grammars import PERSON, reference_chain, regex, schema

FREE = {"max_tokens": 150, "ignore_eos": False}


@pytest.fixture
def held(engine: Engine) -> Engine:
    """An engine that can hold its output to grammars."""
    if not engine.info.grammar_kinds:
        pytest.skip("this engine holds to no grammar")
    return engine


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> Tokenizer:
    """That of all the checkpoints used here."""
    return Tokenizer.from_file(str(golden / "mistral-mxfp4-ct" / "tokenizer.json"))


def complete_text(outputs: list[TokenOutput], engine: Engine, tokenizer: Tokenizer) -> str:
    """The text of a sequence that ended because the grammar was satisfied."""
    assert outputs[-1].finish_reason is FinishReason.STOP
    token_ids = joined(outputs)
    assert token_ids[-1] in engine.info.eos_token_ids
    return tokenizer.decode(token_ids[:-1], skip_special_tokens=False)


async def test_an_engine_without_grammars_refuses_them(engine: Engine) -> None:
    if engine.info.grammar_kinds:
        pytest.skip("this engine holds to grammars")
    with pytest.raises(UnsupportedParameter, match="grammar") as caught:
        await collect(engine, make_request(grammar=regex("a"), **FREE))
    assert caught.value.param == "grammar"


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
async def test_json_is_valid_under_its_schema(held: Engine, tokenizer: Tokenizer, temperature: float) -> None:
    for seed in range(3):
        request = make_request(grammar=schema(PERSON), temperature=temperature, seed=seed, **FREE)
        text = complete_text(await collect(held, request), held, tokenizer)
        person = json.loads(text)
        assert list(person) == ["name", "age"]
        assert re.fullmatch("[a-z]{1,8}", person["name"])
        assert 0 <= person["age"] <= 120


@pytest.mark.parametrize(
    ("grammar", "language"),
    [
        (regex("(red|dark blue)"), "(red|dark blue)"),
        (regex("[0-9]{3}-[0-9]{4}"), "[0-9]{3}-[0-9]{4}"),
        (Grammar(GrammarKind.LARK, 'start: "<" w ("," w){2} ">"\nw: /[ab]{2}/'), "<([ab]{2},){2}[ab]{2}>"),
        (Grammar(GrammarKind.GBNF, 'root ::= "x" [0-4] rest\nrest ::= "y" | "zz"'), "x[0-4](y|zz)"),
    ],
    ids=["choice", "regex", "lark", "gbnf"],
)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_the_text_lies_in_the_language(
    held: Engine, tokenizer: Tokenizer, grammar: Grammar, language: str, temperature: float
) -> None:
    request = make_request(grammar=grammar, temperature=temperature, seed=7, **FREE)
    text = complete_text(await collect(held, request), held, tokenizer)
    assert re.fullmatch(language, text)


async def test_a_json_object_is_no_other_json(held: Engine, tokenizer: Tokenizer) -> None:
    outputs = await collect(
        held, make_request(grammar=Grammar(GrammarKind.JSON_OBJECT), temperature=1.0, **FREE)
    )
    assert tokenizer.decode(joined(outputs)).startswith("{")


async def test_max_tokens_cuts_a_text_short(held: Engine) -> None:
    outputs = await collect(held, make_request(grammar=regex("[a-z]{40}"), max_tokens=5, ignore_eos=False))
    assert len(joined(outputs)) == 5
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_a_bias_chooses_within_the_grammar_only(held: Engine, tokenizer: Tokenizer) -> None:
    wanted, forbidden = tokenizer.token_to_id("7"), tokenizer.token_to_id("x")
    assert None not in (wanted, forbidden)
    bias = {wanted: 100.0, forbidden: 100.0}
    outputs = await collect(held, make_request(grammar=regex("[0-9]{6}"), logit_bias=bias, **FREE))
    assert complete_text(outputs, held, tokenizer) == "777777"


async def test_log_probabilities_are_those_of_the_free_model(held: Engine) -> None:
    prompt = make_prompt(12)
    free = await collect(held, make_request(prompt, max_tokens=1, num_logprobs=1))
    outputs = await collect(held, make_request(prompt, grammar=regex("[0-9]{2}"), num_logprobs=1, **FREE))
    assert free[0].logprobs is not None
    assert outputs[0].logprobs is not None
    assert outputs[0].logprobs[0].top[0] == pytest.approx(free[0].logprobs[0].top[0])
    assert outputs[0].logprobs[0].rank > 1


async def test_grammars_of_others_change_nothing(start_engine: StartEngine) -> None:
    engine = await start_engine(prefix_caching=False)
    if not engine.info.grammar_kinds:
        pytest.skip("this engine holds to no grammar")
    requests = [
        {"prompt": make_prompt(9, 1), "max_tokens": 30},
        {"prompt": make_prompt(9, 2), "grammar": schema(PERSON), **FREE},
        {"prompt": make_prompt(9, 3), "max_tokens": 30, "temperature": 1.0, "seed": 3},
        {"prompt": make_prompt(9, 4), "grammar": regex("([ab]{3} )+"), **FREE, "max_tokens": 40},
        {"prompt": make_prompt(9, 4), "grammar": regex("[0-9]{9}"), "temperature": 1.0, "seed": 4, **FREE},
    ]
    alone = [await generate_ids(engine, make_request(**request)) for request in requests]
    together = await asyncio.gather(*(generate_ids(engine, make_request(**request)) for request in requests))
    assert together == alone


@pytest.mark.parametrize(
    "grammar",
    [
        regex("(a"),
        regex("a(?=b)"),
        schema({"not": {}}),
        schema({"type": "nonsense"}),
        schema({"$ref": "http://127.0.0.1:9/schema"}),
        schema({"type": "string", "x-guidance": {"lenient": True}}),
        Grammar(GrammarKind.JSON_SCHEMA, "[1]"),
        Grammar(GrammarKind.JSON_SCHEMA, "{"),
        Grammar(GrammarKind.LARK, "start: missing"),
        Grammar(GrammarKind.GBNF, 'root ::= "a'),
        Grammar(GrammarKind.REGEX, ""),
        schema({"const": "x" * 200_000}),
        schema(reference_chain(3000)),
    ],
    ids=lambda grammar: f"{grammar.kind.value}-{grammar.text[:24]}",
)
async def test_an_unusable_grammar_is_refused_and_the_others_go_on(held: Engine, grammar: Grammar) -> None:
    other = asyncio.create_task(generate_ids(held, make_request(max_tokens=30)))
    with pytest.raises(InvalidRequest, match="the grammar cannot be used") as caught:
        await collect(held, make_request(grammar=grammar, **FREE))
    assert caught.value.param == "grammar"
    assert len(await other) == 30


async def test_ignore_eos_is_refused_beside_a_grammar(held: Engine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await collect(held, make_request(grammar=regex("a")))
    assert caught.value.param == "ignore_eos"


async def test_compiles_are_counted_and_kept(held: Engine) -> None:
    before = held.stats()
    for _ in range(3):
        await collect(held, make_request(grammar=regex("[xyz]{3}"), **FREE))
    after = held.stats()
    assert after.num_grammar_compiles_total == before.num_grammar_compiles_total + 1
    assert after.grammar_compile_seconds_total > before.grammar_compile_seconds_total


async def test_a_request_can_be_aborted_while_its_grammar_is_compiled(held: Engine) -> None:
    request = make_request(grammar=regex("[0-9]{8}"), **FREE)
    running = asyncio.create_task(collect(held, request))
    # It is taken in at once; its grammar needs a process to start, which takes many turns of the loop.
    await wait_until(lambda: held.stats().num_waiting == 1)
    await held.abort(request.request_id)
    outputs = await running
    assert [output.finish_reason for output in outputs] == [FinishReason.ABORT]
    assert joined(outputs) == []
