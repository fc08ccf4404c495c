"""Time limits: the client's own and the server's, before and after the first token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest

from tests.support.raw_request import open_request
from tests.support.service import RunningServer, run_server, wait_until

ENDLESS: dict[str, object] = {"model": "tiny", "ignore_eos": True, "max_tokens": 450}
CHAT = {**ENDLESS, "messages": [{"role": "user", "content": "hi"}]}
TEXT = {**ENDLESS, "prompt": "hello there"}


SLOW: dict[str, Any] = {"seconds_per_token": 0.02, "max_num_seqs": 1, "max_queued_requests": 20}


@pytest.fixture(scope="module")
def slow(checkpoint: Path) -> Iterator[RunningServer]:
    """One sequence at a time, an answer takes nine seconds."""
    with run_server(checkpoint, **SLOW) as server:
        yield server


@pytest.fixture
def unknown(checkpoint: Path) -> Iterator[RunningServer]:
    """The same, but nothing has finished yet: how long a turn takes to come is not known."""
    with run_server(checkpoint, **SLOW) as server:
        yield server


def is_idle(server: RunningServer) -> bool:
    return server.num_in_engine() == 0 and server.state.admission.num_in_flight == 0


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"X-Request-Timeout": "0.4"}, {}),
        ({}, {"timeout": 0.4}),
        ({"X-Request-Timeout": "60"}, {"timeout": 0.4}),
    ],
)
def test_an_answer_is_cut_short_at_the_clients_deadline(
    slow: RunningServer, headers: dict[str, str], fields: dict[str, object]
) -> None:
    with slow.client() as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            extra_body={"ignore_eos": True, **fields},
            extra_headers=headers,
        )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.model_extra == {"stop_reason": "timeout"}
    assert choice.message.content
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens < 40
    wait_until(lambda: is_idle(slow), seconds=1, what="the engine is idle")


def test_a_stream_ends_properly_at_the_deadline(slow: RunningServer) -> None:
    with slow.client(strict=False) as client:
        chunks = list(
            client.completions.create(
                model="tiny",
                prompt="hello there",
                max_tokens=450,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True, "timeout": 0.4},
            )
        )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens < 40
    last = chunks[-2].choices[0]
    assert last.finish_reason == "length"
    assert last.model_extra == {"stop_reason": "timeout"}
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]).startswith("hello")


def test_text_held_back_for_a_stop_string_is_part_of_the_answer(slow: RunningServer) -> None:
    body = {**TEXT, "prompt": "a", "timeout": 0.4, "stop": "a" * 400 + "b"}
    answer = httpx.post(f"{slow.url}/v1/completions", json=body).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
    assert set(choice["text"].replace(" ", "")) == {"a"}


def test_choices_that_never_had_their_turn_are_empty(slow: RunningServer) -> None:
    answer = httpx.post(f"{slow.url}/v1/completions", json={**TEXT, "n": 4, "timeout": 0.4}).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [bool(text) for text in texts] == [True, False, False, False]
    assert {choice["stop_reason"] for choice in answer["choices"]} == {"timeout"}
    wait_until(lambda: is_idle(slow), seconds=1, what="the engine is idle")


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token(unknown: RunningServer, stream: bool) -> None:
    held = [open_request(unknown, "/v1/completions", TEXT) for _ in range(3)]
    wait_until(lambda: unknown.state.admission.num_queued == 1, seconds=5, what="the engine is full")
    answer = httpx.post(f"{unknown.url}/v1/chat/completions", json={**CHAT, "stream": stream, "timeout": 0.2})
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert unknown.state.admission.num_in_flight == 3
    for connection in held:
        connection.close()
    wait_until(lambda: is_idle(unknown), seconds=1, what="the engine is idle")
    assert unknown.metric('nybble_requests_rejected_total{reason="deadline"}') >= 1


def test_the_official_client_does_not_repeat_a_request_past_its_deadline(unknown: RunningServer) -> None:
    held = [open_request(unknown, "/v1/completions", TEXT) for _ in range(2)]
    wait_until(lambda: unknown.num_in_engine() == 2, seconds=5, what="the engine is full")
    before = unknown.metric('nybble_requests_rejected_total{reason="deadline"}')
    with (
        openai.OpenAI(base_url=f"{unknown.url}/v1", api_key="none", max_retries=3) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.completions.create(model="tiny", prompt="x", extra_body={"timeout": 0.1})
    assert caught.value.status_code == 408
    assert unknown.metric('nybble_requests_rejected_total{reason="deadline"}') == before + 1
    for connection in held:
        connection.close()
    wait_until(lambda: is_idle(unknown), seconds=1, what="the engine is idle")


def test_a_malformed_deadline(slow: RunningServer) -> None:
    answer = httpx.post(f"{slow.url}/v1/completions", json=TEXT, headers={"X-Request-Timeout": "soon"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Timeout"
    answer = httpx.post(f"{slow.url}/v1/completions", json={**TEXT, "timeout": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "timeout"


def test_the_servers_queue_timeout(checkpoint: Path) -> None:
    with run_server(checkpoint, seconds_per_token=0.02, max_num_seqs=1, queue_timeout_seconds=0.3) as server:
        held = [open_request(server, "/v1/completions", TEXT) for _ in range(2)]
        wait_until(lambda: server.num_in_engine() == 2, seconds=5, what="the engine is full")
        answer = httpx.post(f"{server.url}/v1/completions", json=TEXT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "server_is_overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert server.num_in_engine() == 2  # those that had their turn go on
        for connection in held:
            connection.close()


def test_an_engine_that_hangs_does_not_keep_a_request_past_its_deadline(checkpoint: Path) -> None:
    with run_server(checkpoint, echo_faults="hang_after_tokens=5", stall_timeout_seconds=600) as server:
        cut = httpx.post(f"{server.url}/v1/completions", json={**TEXT, "timeout": 0.5})
        assert cut.json()["choices"][0]["stop_reason"] == "timeout"
        assert cut.json()["usage"]["completion_tokens"] == 5
        nothing = httpx.post(f"{server.url}/v1/completions", json={**TEXT, "timeout": 0.5})
        assert nothing.status_code == 408
        wait_until(lambda: is_idle(server), seconds=1, what="nothing is left")


def test_the_servers_first_token_timeout(checkpoint: Path) -> None:
    with run_server(
        checkpoint, seconds_per_token=0.02, max_num_seqs=1, first_token_timeout_seconds=0.5
    ) as server:
        first = open_request(server, "/v1/completions", {**TEXT, "stream": True})
        first.recv(1)
        answer = httpx.post(f"{server.url}/v1/completions", json=TEXT)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert server.engine.stats().num_running == 1  # a stream that has begun is not concerned
        first.close()


def test_the_servers_total_timeout(checkpoint: Path) -> None:
    with run_server(checkpoint, seconds_per_token=0.02, request_timeout_seconds=0.4) as server:
        body = {**CHAT, "stream": True}
        text = httpx.post(f"{server.url}/v1/chat/completions", json=body).text
        *_, last, done = [line for line in text.splitlines() if line]
        assert done == "data: [DONE]"
        choice = orjson.loads(last.removeprefix("data: "))["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
        assert server.metric('nybble_sequences_finished_total{reason="timeout"}') == 1


def test_a_wait_longer_than_the_deadline_is_refused_at_once(unknown: RunningServer) -> None:
    for _ in range(3):
        httpx.post(f"{unknown.url}/v1/completions", json={**TEXT, "max_tokens": 10})
    held = [open_request(unknown, "/v1/completions", TEXT) for _ in range(12)]
    wait_until(lambda: unknown.state.admission.num_queued == 10, seconds=5, what="ten wait")
    started = unknown.state.admission.num_in_flight
    answer = httpx.post(f"{unknown.url}/v1/completions", json={**TEXT, "timeout": 1.0})
    assert answer.status_code == 503
    assert "after its time limit" in answer.json()["error"]["message"]
    assert answer.elapsed.total_seconds() < 1.0
    assert unknown.state.admission.num_in_flight == started
    for connection in held:
        connection.close()
    wait_until(lambda: is_idle(unknown), seconds=5, what="the engine is idle")
