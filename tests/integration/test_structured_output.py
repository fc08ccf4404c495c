"""The CPU engine held to grammars: any schema of a family, preemption, speculation, hostile neighbours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from engines.base import EngineOptions
from engines.cpu.engine import CpuEngine
from engines.errors import EngineDead, GrammarFailed, InvalidRequest, UnsupportedParameter
from engines.request import FinishReason
from examples.demo_model.make_demo import make_demo
from tests.support.generation import (
    collect,
    generate_ids,
    joined,
    make_prompt,
    make_request,
    wait_until,
    wait_until_idle,
)
from tests.support.grammars import PERSON, reference_chain, regex, schema

T = TypeVar("T")
FREE = {"max_tokens": 1500, "ignore_eos": False}

LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-999, 999), st.integers(0, 999)).map(
        lambda t: {"type": "integer", "minimum": t[0], "maximum": t[0] + t[1]}
    ),
    st.integers(0, 5).map(lambda n: {"type": "string", "maxLength": n}),
    st.just({"type": "string", "pattern": "^[A-Z][a-z]{1,3}$"}),
    st.lists(st.one_of(st.integers(), st.text(max_size=4), st.booleans()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda name: {"type": "string", "format": name}),
)


def arrays(items: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(items, st.integers(0, 2), st.integers(0, 2)).map(
        lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
    )


def objects(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=3)

    def build(properties: dict[str, Any], seed: int) -> dict[str, Any]:
        required = [name for index, name in enumerate(properties) if seed >> index & 1]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return st.builds(build, properties, st.integers(0, 7))


def alternatives(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(values, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})


SCHEMAS = st.recursive(
    LEAVES, lambda inner: st.one_of(arrays(inner), objects(inner), alternatives(inner)), max_leaves=4
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grammars") / "checkpoint"
    make_demo(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def options(directory: Path, **fields: Any) -> EngineOptions:
    return EngineOptions(checkpoint=directory, num_threads=1, check_integrity=True, **fields)


class Serving:
    """One engine for many examples, on a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self.engine = CpuEngine(options(directory))
        self.run(self.engine.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self.engine.close())
        self._loop.close()


@pytest.fixture(scope="module")
def serving(directory: Path) -> Iterator[Serving]:
    serving = Serving(directory)
    yield serving
    serving.close()


@given(SCHEMAS, st.sampled_from([0.0, 1.0]), st.integers(0, 2**32))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_the_answer_to_any_schema_is_valid(
    serving: Serving, tokenizer: Tokenizer, value: dict[str, Any], temperature: float, seed: int
) -> None:
    request = make_request(grammar=schema(value), temperature=temperature, seed=seed, **FREE)
    outputs = serving.run(collect(serving.engine, request))
    assert outputs[-1].finish_reason is FinishReason.STOP
    text = tokenizer.decode(joined(outputs)[:-1], skip_special_tokens=False)
    Draft202012Validator(value, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))


async def test_the_operator_can_switch_grammars_off(directory: Path) -> None:
    engine = CpuEngine(options(directory, structured_output=False))
    await engine.start()
    assert engine.info.grammar_kinds == frozenset()
    with pytest.raises(UnsupportedParameter):
        await collect(engine, make_request(grammar=regex("a"), **FREE))
    await engine.close()


async def test_preemption_changes_no_token(directory: Path) -> None:
    requests = [
        {
            "prompt": make_prompt(20, salt),
            "grammar": regex("([a-z]{3} [0-9]{2} )+"),
            "temperature": 1.0,
            "seed": salt,
            "max_tokens": 90,
            "ignore_eos": False,
            "logit_bias": {2: -100.0},
        }
        for salt in range(4)
    ]
    engine = CpuEngine(options(directory))
    await engine.start()
    alone = [await generate_ids(engine, make_request(**request)) for request in requests]
    await engine.close()
    block_bytes = kv_bytes_of_a_block(engine, directory)
    crowded = CpuEngine(options(directory, kv_cache_memory_bytes=14 * block_bytes, max_model_len=128))
    await crowded.start()
    together = await asyncio.gather(*(generate_ids(crowded, make_request(**request)) for request in requests))
    assert crowded.stats().num_preemptions_total > 0
    await crowded.close()
    assert together == alone


def kv_bytes_of_a_block(engine: CpuEngine, directory: Path) -> int:
    config = json.loads((directory / "config.json").read_text())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size * 2
    return int(per_token * engine.info.block_size)


async def test_min_tokens_holds_back_the_end_while_anything_else_may_come(directory: Path) -> None:
    engine = CpuEngine(options(directory))
    await engine.start()
    (eos_id,) = engine.info.eos_token_ids
    eager = {"logit_bias": {eos_id: 100.0}, "min_tokens": 12, **FREE}
    open_end = await generate_ids(engine, make_request(grammar=regex("[ab]*"), **eager))
    assert len(open_end) == 13
    assert open_end.index(eos_id) == 12
    closed = await generate_ids(engine, make_request(grammar=regex("[0-9]"), **eager))
    assert len(closed) == 2
    assert closed[-1] == eos_id
    await engine.close()


async def test_a_stop_id_without_text_is_an_end_and_one_with_text_is_text(
    directory: Path, tokenizer: Tokenizer
) -> None:
    engine = CpuEngine(options(directory))
    await engine.start()
    special, ordinary = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("b")
    bias = {special: 100.0, ordinary: 100.0, min(engine.info.eos_token_ids): -100.0}
    request = {"logit_bias": bias, "stop_token_ids": frozenset({special, ordinary}), **FREE}
    ended = await collect(engine, make_request(grammar=regex("a{3}"), **request))
    assert tokenizer.decode(joined(ended)[:-1]) == "aaa"
    assert joined(ended)[-1] == special
    cut = await collect(engine, make_request(grammar=regex("abc"), **request))
    assert tokenizer.decode(joined(cut)) == "ab"
    assert [outputs[-1].finish_reason for outputs in (ended, cut)] == [FinishReason.STOP] * 2
    await engine.close()


async def test_guessed_tokens_change_nothing(directory: Path) -> None:
    answers = {}
    for speculation in ("off", "auto"):
        engine = CpuEngine(options(directory, speculation=speculation))
        await engine.start()
        answers[speculation] = [
            await generate_ids(engine, make_request(grammar=grammar, temperature=temperature, seed=5, **FREE))
            for grammar in (schema(PERSON), regex("(ab ){10,20}"))
            for temperature in (0.0, 1.0)
        ]
        await engine.close()
    assert answers["auto"] == answers["off"]


async def test_hostile_grammars_leave_the_others_alone(directory: Path) -> None:
    engine = CpuEngine(options(directory))
    await engine.start()
    expected = await generate_ids(engine, make_request(max_tokens=300))
    hostile = [
        schema(reference_chain(3000)),
        schema({"type": "integer", "multipleOf": 99_999_989}),
        regex("(((a{1000}){1000}){1000})"),
    ]
    others = [asyncio.create_task(generate_ids(engine, make_request(max_tokens=300))) for _ in range(3)]
    refused = await asyncio.gather(
        *(collect(engine, make_request(grammar=grammar, **FREE)) for grammar in hostile),
        return_exceptions=True,
    )
    assert [type(error) for error in refused] == [InvalidRequest] * 3
    assert [await other for other in others] == [expected] * 3
    assert (await collect(engine, make_request(grammar=regex("a|b"), **FREE)))[
        -1
    ].finish_reason is FinishReason.STOP
    await wait_until_idle(engine)
    await engine.close()


async def test_a_grammar_that_grows_too_complex_ends_its_own_request(directory: Path) -> None:
    engine = CpuEngine(options(directory))
    await engine.start()
    other = asyncio.create_task(generate_ids(engine, make_request(max_tokens=100)))
    late = regex("[0-9]{40}(((a{1000}){1000}){1000})")
    with pytest.raises(GrammarFailed, match="cannot be followed any further"):
        await collect(engine, make_request(grammar=late, **FREE))
    assert len(await other) == 100
    await wait_until_idle(engine)
    await engine.close()


async def test_closing_ends_what_waits_for_its_grammar(directory: Path) -> None:
    engine = CpuEngine(options(directory))
    await engine.start()
    slow = schema({"type": "integer", "multipleOf": 99_999_989})
    waiting = [
        asyncio.create_task(collect(engine, make_request(grammar=grammar, **FREE)))
        for grammar in (slow, regex("a"))
    ]
    await wait_until(lambda: engine.stats().num_waiting == 2)
    await engine.close()
    for task in waiting:
        with pytest.raises(EngineDead, match="closed"):
            await task
