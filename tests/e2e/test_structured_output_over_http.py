"""The shipped demo model answers in a form: official client, streams, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.grammars import PERSON, reference_chain
from tests.support.process import NybbleProcess, serve

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoints" / "mistral-mxfp4"
QUESTION: list[Any] = [{"role": "user", "content": "Extract the name and the age: Anna is 32 years old."}]


class City(BaseModel):
    name: str = Field(max_length=12)
    continent: Literal["Europe", "Asia", "Africa"]
    neighbours: list[int] = Field(max_length=2)


@pytest.fixture(scope="module")
def server() -> Iterator[NybbleProcess]:
    with serve(DEMO, "--served-model-name", "demo", "--num-threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: NybbleProcess) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def json_schema(value: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": value}}


def post(server: NybbleProcess, path: str = "chat/completions", **fields: Any) -> httpx.Response:
    prompt = {"messages": QUESTION} if path.startswith("chat") else {"prompt": "The capital of"}
    body = {"model": "demo", "max_tokens": 100, "temperature": 0, **prompt, **fields}
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def test_an_extraction_prompt_is_answered_in_the_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, response_format=json_schema(PERSON)
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    assert list(json.loads(choice.message.content)) == ["name", "age"]


def test_the_official_client_parses_into_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=City, temperature=1.0, seed=3, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_the_whole_answer(client: openai.OpenAI, temperature: float) -> None:
    fields: Any = {
        "model": "demo",
        "messages": QUESTION,
        "temperature": temperature,
        "seed": 11,
        "n": 2,
        "max_tokens": 200,
        "response_format": json_schema(PERSON),
    }
    whole = client.chat.completions.create(**fields)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("field", "value", "answers"),
    [
        ("structured_outputs", {"choice": ["red [1]", "dark blue\n"]}, {"red [1]", "dark blue\n"}),
        ("guided_choice", ["yes", "no"], {"yes", "no"}),
        ("structured_outputs", {"regex": "[ab]"}, {"a", "b"}),
        ("guided_regex", "x|y", {"x", "y"}),
        ("structured_outputs", {"json": {"enum": [1, "two"]}}, {"1", '"two"'}),
        ("guided_json", '{"const": null}', {"null"}),
        ("structured_outputs", {"grammar": 'start: "p" | "q"'}, {"p", "q"}),
        ("guided_grammar", 'root ::= "p" | "q"', {"p", "q"}),
        ("response_format", json_schema({"type": "boolean"}), {"true", "false"}),
    ],
)
def test_every_field_that_asks_for_a_form_is_honoured(
    server: NybbleProcess, path: str, field: str, value: Any, answers: set[str]
) -> None:
    answer = post(server, path, **{field: value}).raise_for_status()
    choice = answer.json()["choices"][0]
    assert (choice["text"] if path == "completions" else choice["message"]["content"]) in answers
    assert choice["finish_reason"] == "stop"
    assert "x-nybble-ignored-fields" not in answer.headers


def test_a_json_object_is_asked_for(server: NybbleProcess) -> None:
    answer = post(server, response_format={"type": "json_object"}, max_tokens=1)
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": json_schema({"not": {}})}, "response_format", "invalid_value"),
        ({"response_format": json_schema(reference_chain(3000))}, "response_format", "invalid_value"),
        ({"response_format": json_schema({"const": "x" * 200_000})}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "unsupported_parameter"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
            "response_format.schema",
            "unsupported_parameter",
        ),
        ({"guided_regex": "(a"}, "guided_regex", "invalid_value"),
        ({"guided_regex": "(a", "stream": True}, "guided_regex", "invalid_value"),
        ({"guided_regex": "(a", "n": 3}, "guided_regex", "invalid_value"),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"structured_outputs": {"grammar": "start: b"}}, "structured_outputs.grammar", "invalid_value"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a", "structural_tag": "b"}},
            "structured_outputs.structural_tag",
            "unsupported_parameter",
        ),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: NybbleProcess, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_a_form_that_becomes_too_complex_is_the_client_s_fault(server: NybbleProcess) -> None:
    answer = post(server, guided_regex="[0-9]{40}(((a{1000}){1000}){1000})")
    assert answer.status_code == 400
    assert "cannot be followed" in answer.json()["error"]["message"]


def test_null_is_no_form(server: NybbleProcess) -> None:
    fields = dict.fromkeys(("response_format", "structured_outputs", "guided_json", "guided_choice"))
    assert post(server, **fields, max_tokens=1).status_code == 200


def test_compiles_are_measured(server: NybbleProcess) -> None:
    before = server.metric("nybble_grammar_compile_seconds_count")
    for _ in range(2):
        post(server, guided_regex="[k-m]{2}").raise_for_status()
    assert server.metric("nybble_grammar_compile_seconds_count") == before + 1
