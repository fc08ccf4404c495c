"""POST /v1/chat/completions as the official client sees it."""

from __future__ import annotations

import httpx
import openai
import orjson
import pytest
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello brave new world"}]


def events(text: str) -> list[str]:
    return [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]


def test_an_answer_in_one_piece(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.system_fingerprint
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same_as_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES)
    stream = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    assert stream[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in stream[1:]] == [None] * (len(stream) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in stream]
    assert reasons == [None] * (len(stream) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in stream)
    assert len({chunk.id for chunk in stream}) == 1


def test_usage_in_a_stream_only_when_asked_for(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 4}
    plain = http.post("/v1/chat/completions", json=body)
    assert all("usage" not in orjson.loads(event) for event in events(plain.text)[:-1])
    asked = http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    *chunks, last = [orjson.loads(event) for event in events(asked.text)[:-1]]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert events(asked.text)[-1] == "[DONE]"


def test_headers_of_a_stream(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client: openai.OpenAI, stream: bool) -> None:
    texts = ["", "", ""]
    finished: set[int] = set()
    if stream:
        for chunk in client.chat.completions.create(
            model="tiny", messages=MESSAGES, n=3, max_tokens=7, stream=True
        ):
            for piece in chunk.choices:
                texts[piece.index] += piece.delta.content or ""
                if piece.finish_reason:
                    assert piece.index not in finished
                    finished.add(piece.index)
    else:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3, max_tokens=7)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 21
        for choice in answer.choices:
            texts[choice.index] = choice.message.content or ""
            finished.add(choice.index)
    assert finished == {0, 1, 2}
    assert texts[0]
    assert len(set(texts)) == 1


def test_prompt_tokens_are_counted_once_for_several_choices(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    three = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, n=3)
    assert one.usage is not None
    assert three.usage is not None
    assert three.usage.prompt_tokens == one.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = client.chat.completions.create(**options, stream=True)
        entries = [
            entry
            for chunk in chunks
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content
        ]
    else:
        answer = client.chat.completions.create(**options)
        entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[-1].logprob


def test_stop_string_is_cut_off_and_named(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stop": "brave"}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"].endswith("hello ")
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == "brave"


def test_null_is_the_same_as_absent(http: httpx.Client) -> None:
    names = http.get("/openapi.json").json()["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    nulls = {name: None for name in names if name not in ("model", "messages")}
    assert len(nulls) > 40
    answer = http.post("/v1/chat/completions", json={**nulls, "model": "tiny", "messages": MESSAGES})
    assert answer.status_code == 200, answer.text
    assert "x-nybble-ignored-fields" not in answer.headers


@pytest.mark.parametrize("name", ["model", "messages"])
def test_null_for_what_is_required_is_the_same_as_leaving_it_out(http: httpx.Client, name: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "unknown": None, name: None}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"Missing required parameter: '{name}'."


def test_null_in_a_field_that_nobody_knows_is_nothing(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1, "unknown": None}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert "x-nybble-ignored-fields" not in answer.headers


def test_unknown_fields_are_named_in_a_header(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1, "zeta": 1, "alpha": {}, "bad\nname": 1}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-nybble-ignored-fields"] == "alpha, zeta"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("web_search_options", {}),
        ("store", True),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("top_logprobs", 2),
        ("tool_choice", "required"),
    ],
)
def test_a_documented_field_that_is_not_served_is_refused_by_name(
    http: httpx.Client, field: str, value: object
) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "text"}),
        ("tools", []),
        ("modalities", ["text"]),
        ("store", False),
        ("service_tier", "auto"),
        ("user", "someone"),
        ("metadata", {"a": "b"}),
        ("parallel_tool_calls", True),
        ("prompt_cache_key", "k"),
        ("reasoning_effort", "low"),
    ],
)
def test_fields_that_change_nothing_are_accepted(http: httpx.Client, field: str, value: object) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1, field: value}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "x-nybble-ignored-fields" not in answer.headers


def test_tools_are_left_aside_with_tool_choice_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=2,
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none",
    )
    assert answer.choices[0].message.content


def test_text_parts_are_one_text(client: openai.OpenAI) -> None:
    parts: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": "hello brave new world"}]}
    ]
    in_parts = client.chat.completions.create(model="tiny", messages=parts, max_tokens=30)
    plain = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30)
    assert in_parts.choices[0].message.content == plain.choices[0].message.content


def test_max_completion_tokens_goes_before_max_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=9, max_completion_tokens=3
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
