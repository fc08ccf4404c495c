"""POST /v1/completions: forms of the prompt, echo, log-probabilities."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import orjson
import pytest

from tests.support.service import RunningServer


def complete(http: httpx.Client, **fields: object) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": "tiny", **fields})
    assert answer.status_code == 200, answer.text
    payload: dict[str, Any] = answer.json()
    return payload


def streamed(http: httpx.Client, **fields: object) -> list[dict[str, Any]]:
    answer = http.post("/v1/completions", json={"model": "tiny", "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [orjson.loads(line) for line in lines[:-1]]


def test_the_official_client(echo: RunningServer, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello world", logprobs=2)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    # In strict mode the client refuses a chunk whose finish_reason is null, which is what OpenAI sends.
    with echo.client(strict=False) as lenient:
        chunks = list(
            lenient.completions.create(model="org/tiny", prompt="hello world", stream=True, max_tokens=4)
        )
    assert chunks[0].model == "org/tiny"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_max_tokens_is_16_unless_given(http: httpx.Client) -> None:
    answer = complete(http, prompt="hello brave new world", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16


def test_text_and_its_ids_give_the_same_answer(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "hello world"}).json()["tokens"]
    texts = {complete(http, prompt=prompt)["choices"][0]["text"] for prompt in ("hello world", ids, [ids])}
    assert len(texts) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_numbered_prompt_by_prompt(http: httpx.Client, stream: bool) -> None:
    fields: dict[str, object] = {"prompt": ["aaa", "bbb"], "n": 2, "max_tokens": 8}
    texts = dict.fromkeys(range(4), "")
    chunks = streamed(http, **fields) if stream else [complete(http, **fields)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert "a" in texts[0]
    assert "b" in texts[2]


def test_usage_sums_prompts_once_and_answers_all(http: httpx.Client) -> None:
    one = complete(http, prompt="aaa", max_tokens=2)["usage"]
    many = complete(http, prompt=["aaa", "aaa"], n=3, max_tokens=2)["usage"]
    assert many["prompt_tokens"] == 2 * one["prompt_tokens"]
    assert many["completion_tokens"] == 6 * one["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(http: httpx.Client, stream: bool) -> None:
    # The official client in strict mode refuses the null that OpenAI's own server sends for the first token.
    prompt = "hello wörld"
    ids = http.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
    fields: dict[str, object] = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 3}
    chunks = streamed(http, **fields) if stream else [complete(http, **fields)]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    lists: dict[str, list[Any]] = {}
    for chunk in chunks:
        for name, values in chunk["choices"][0]["logprobs"].items():
            lists.setdefault(name, []).extend(values)
    assert text.startswith(prompt)
    assert {len(values) for values in lists.values()} == {len(ids) + 3}
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert all(value < 0 for value in lists["token_logprobs"][1:])
    assert lists["text_offset"] == sorted(lists["text_offset"])
    assert lists["text_offset"][len(ids)] == len(prompt)
    for token, offset in list(zip(lists["tokens"], lists["text_offset"], strict=True))[1:]:
        if not token.startswith(("bytes:", "<", " ")):
            assert text[offset:].startswith(token)


def test_scoring_a_prompt_generates_nothing(http: httpx.Client) -> None:
    answer = complete(http, prompt=[[1, 60, 61], [1, 62]], echo=True, logprobs=0, max_tokens=0)
    assert answer["usage"]["completion_tokens"] == 0
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [3, 2]
    assert complete(http, prompt="abc", echo=True, max_tokens=0)["choices"][0]["text"] == "abc"


def test_a_token_that_is_half_a_character_is_written_as_bytes(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "🦊", "add_special_tokens": False}).json()["tokens"]
    lists = complete(http, prompt=ids, echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
    parts = [token for token in lists["tokens"] if token.startswith("bytes:")]
    assert len(parts) == 4
    pairs = list(zip(lists["tokens"], lists["top_logprobs"], strict=True))
    assert all(token in top for token, top in pairs[1:])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"999999": 1}}, "logit_bias"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "temperature": 2.5}, "temperature"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a\ud800"}, "prompt"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    http: httpx.Client, fields: dict[str, object], param: str
) -> None:
    content = json.dumps({"model": "tiny", **fields})
    answer = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split("[")[0] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"
