"""Grammars on their way to TensorRT-LLM: what the runtime is told at load and with a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines.base import Engine, EngineOptions
from engines.errors import UnsupportedParameter
from engines.registry import create_engine
from engines.request import Grammar, GrammarKind
from tests.support.fake_tensorrt_llm import VERSIONS, installed
from tests.support.fake_tensorrt_llm.behaviour import Behaviour
from tests.support.generation import collect, make_request
from tests.support.gpu_machines import B200
from tests.support.grammars import PERSON, regex, schema
from tests.unit.trtllm.test_built_directories import MANIFEST, engine_directory, engine_on

FREE = {"max_tokens": 60, "ignore_eos": False}


@asynccontextmanager
async def started(
    directory: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Engine, Behaviour]]:
    monkeypatch.setattr("engines.trtllm.startup.detect_machine", lambda: B200)
    with installed(version) as behaviour:
        engine = create_engine("trtllm", EngineOptions(checkpoint=directory, max_model_len=256))
        await engine.start()
        try:
            yield engine, behaviour
        finally:
            await engine.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("grammar", "field", "text"),
    [
        (regex("[0-9]{3}"), "regex", "[0-9]{3}"),
        (Grammar(GrammarKind.LARK, 'start: "a"'), "grammar", 'start: "a"'),
        (Grammar(GrammarKind.GBNF, 'root ::= "a"'), "grammar", 'start: "a"'),
    ],
    ids=["regex", "lark", "gbnf"],
)
async def test_one_field_holds_the_text(
    golden: Path, monkeypatch: pytest.MonkeyPatch, version: str, grammar: Grammar, field: str, text: str
) -> None:
    async with started(golden / "mixtral-nvfp4-modelopt", version, monkeypatch) as (engine, behaviour):
        await collect(engine, make_request(grammar=grammar, **FREE))
    _, params, _ = behaviour.received[-1]
    assert text in getattr(params.guided_decoding, field)
    assert behaviour.llms[0].args.guided_decoding_backend == "llguidance"
    assert behaviour.llms[0].args.skip_tokenizer_init is False


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [(schema(PERSON), PERSON), (Grammar(GrammarKind.JSON_OBJECT), {"type": "object"})],
    ids=["schema", "object"],
)
async def test_a_schema_goes_with_the_options_it_was_tried_out_with(
    golden: Path, monkeypatch: pytest.MonkeyPatch, grammar: Grammar, expected: dict[str, object]
) -> None:
    async with started(golden / "mixtral-nvfp4-modelopt", "1.2.1", monkeypatch) as (engine, behaviour):
        await collect(engine, make_request(grammar=grammar, **FREE))
    sent = json.loads(behaviour.received[-1][1].guided_decoding.json)
    options = sent.pop("x-guidance")
    assert sent == expected
    assert options["lenient"] is False
    assert options["coerce_one_of"] is False


async def test_a_request_without_a_grammar_says_nothing_of_one(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(golden / "mixtral-nvfp4-modelopt", "1.2.1", monkeypatch) as (engine, behaviour):
        await collect(engine, make_request())
    assert behaviour.received[-1][1].guided_decoding is None


async def test_min_tokens_is_refused_beside_a_grammar(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(golden / "mixtral-nvfp4-modelopt", "1.2.1", monkeypatch) as (engine, _):
        with pytest.raises(UnsupportedParameter, match="grammar") as caught:
            await collect(engine, make_request(grammar=regex("a"), min_tokens=2, **FREE))
    assert caught.value.param == "min_tokens"


async def test_without_a_tokenizer_there_are_no_grammars(
    tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(golden / "mixtral-nvfp4-modelopt", directory)
    (directory / "tokenizer.json").unlink()
    async with started(directory, "1.2.1", monkeypatch) as (engine, behaviour):
        assert engine.info.grammar_kinds == frozenset()
        assert behaviour.llms[0].args.guided_decoding_backend is None
        assert behaviour.llms[0].args.skip_tokenizer_init is True
        with pytest.raises(UnsupportedParameter):
            await collect(engine, make_request(grammar=regex("a"), **FREE))


async def test_the_operator_can_switch_grammars_off(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed("1.2.1") as behaviour:
        directory = golden / "mixtral-nvfp4-modelopt"
        engine = engine_on(B200, directory, monkeypatch, max_model_len=256, structured_output=False)
        await engine.start()
        assert engine.info.grammar_kinds == frozenset()
        assert behaviour.llms[0].args.skip_tokenizer_init is True
        await engine.close()


async def test_an_engine_made_by_trtllm_build_has_no_grammars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed("1.2.1"):
        engine = engine_on(MANIFEST.machine, engine_directory(tmp_path), monkeypatch)
        await engine.start()
        assert engine.info.grammar_kinds == frozenset()
        await engine.close()
