"""What a request took, as its headers, its usage, its log line and the metrics tell it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.logs import JsonFormatter
from tests.support.otlp_receiver import otlp_receiver
from tests.support.service import RunningServer, run_server, wait_until

PARTS = ("tokenize", "queue", "prefill", "decode")
CANARY = "marmalade-zeppelin-7731"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": CANARY}], "ignore_eos": True}


def _timing(header: str) -> dict[str, float]:
    entries = (re.fullmatch(r"([a-z]+);dur=(\d+\.\d+)", entry) for entry in header.split(", "))
    return {match[1]: float(match[2]) for match in entries if match is not None}


def _post(url: str, path: str = "/v1/chat/completions", **fields: object) -> httpx.Response:
    return httpx.post(url + path, json={**BODY, **fields}).raise_for_status()


def _events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_a_whole_answer_tells_all_parts_twice(echo: RunningServer) -> None:
    answer = _post(echo.url, max_tokens=5)
    header = _timing(answer.headers["server-timing"])
    assert tuple(header) == PARTS
    timing = answer.json()["usage"]["timing"]
    assert {name: pytest.approx(timing[f"{name}_seconds"] * 1e3, abs=0.001) for name in PARTS} == header
    assert timing["decode_seconds"] > 0


def test_a_streams_header_knows_what_came_before_its_first_text(echo: RunningServer) -> None:
    answer = _post(echo.url, max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert tuple(_timing(answer.headers["server-timing"])) == PARTS[:3]
    usage = _events(answer)[-1]["usage"]
    assert set(usage["timing"]) == {f"{name}_seconds" for name in PARTS}


def test_completions_tell_it_too(echo: RunningServer) -> None:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 3}
    answer = httpx.post(f"{echo.url}/v1/completions", json=body)
    assert tuple(_timing(answer.headers["server-timing"])) == PARTS


def test_other_routes_tell_nothing(echo: RunningServer) -> None:
    assert "server-timing" not in httpx.get(f"{echo.url}/v1/models").headers


def test_a_strict_client_takes_the_extension(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=3
    )
    assert completion.usage is not None
    assert set(completion.usage.model_dump()["timing"]) == {f"{name}_seconds" for name in PARTS}


def test_a_stop_string_ends_the_decode_time_too(echo: RunningServer) -> None:
    answer = _post(echo.url, max_tokens=50, stop=["zep"])
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert answer.json()["usage"]["timing"]["decode_seconds"] > 0


def test_time_in_the_queue_is_told(checkpoint: Path) -> None:
    with run_server(checkpoint, seconds_per_token=0.02, max_num_seqs=1) as server:
        answer = _post(server.url, max_tokens=10, n=2)
        timing = answer.json()["usage"]["timing"]
        assert timing["queue_seconds"] >= 10 * 0.02  # the second answer waited for the first
        assert server.metric("nybble_request_queue_seconds_count") == 2
        assert server.metric("nybble_request_queue_seconds_sum") >= 10 * 0.02
        assert server.metric("nybble_request_decode_seconds_sum") >= 2 * 9 * 0.02


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def access(self, path: str) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in list(self.lines)]
        return [
            line for line in parsed if line["logger"] == "nybble.access" and f" {path} " in line["message"]
        ]


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Any:
    """Everything that is logged, at debug level."""
    root = logging.getLogger()
    handler, level = _Lines(), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_one_line_a_request_says_it_all(checkpoint: Path, log: _Lines) -> None:
    with run_server(checkpoint) as server:
        httpx.post(
            f"{server.url}/v1/chat/completions",
            json={**BODY, "max_tokens": 4, "stream": True, "n": 2},
            headers={"X-Request-Id": "mine"},
        )
        wait_until(lambda: bool(log.access("/v1/chat/completions")), seconds=5, what="the line is written")
        httpx.get(f"{server.url}/v1/models")
        wait_until(lambda: bool(log.access("/v1/models")), seconds=5, what="the line is written")
    (line,) = log.access("/v1/chat/completions")
    assert line["request_id"] == "mine"
    assert line["status"] == 200
    assert line["num_generated_tokens"] == 8
    assert line["num_prompt_tokens"] > 4
    assert line["num_cached_tokens"] == 0
    assert line["finish_reasons"] == ["length", "length"]
    parts = [line[f"{name}_seconds"] for name in PARTS]
    assert min(parts) >= 0
    assert line["seconds"] >= line["time_to_first_token_seconds"] > 0
    (plain,) = log.access("/v1/models")
    assert "num_generated_tokens" not in plain


def test_a_line_of_an_error_names_its_request(
    checkpoint: Path, log: _Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("service.routes.chat.chat_prompt", broken)
    with run_server(checkpoint) as server:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json=BODY, headers={"X-Request-Id": "unlucky"}
        )
        assert answer.status_code == 500
    lines = [json.loads(line) for line in log.lines]
    (line,) = [line for line in lines if line["logger"] == "nybble.errors"]
    assert line["request_id"] == "unlucky"


def _everything(server: RunningServer) -> str:
    """Answers well and badly with the canary in each; what came out besides the answers."""
    for fields in ({}, {"stream": True}, {"temperature": 9}, {"model": CANARY}, {"max_tokens": 10**6}):
        httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "max_tokens": 30, **fields})
    httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": CANARY})
    httpx.post(f"{server.url}/v1/completions", content=f'{{"prompt": "{CANARY}')
    httpx.post(f"{server.url}/tokenize", json={"prompt": CANARY})
    return server.metrics()


def test_prompts_are_nowhere_even_at_debug_level(checkpoint: Path, log: _Lines) -> None:
    with otlp_receiver() as receiver:
        with run_server(checkpoint, otlp_endpoint=receiver.url, log_level="debug") as server:
            metrics = _everything(server)
        assert len(receiver.spans()) > 5
        assert CANARY.encode() not in receiver.raw()
    # httpx's own debug lines are the test's client's, not the server's.
    written = [
        line for line in log.lines if json.loads(line)["logger"].split(".")[0] not in ("httpx", "httpcore")
    ]
    assert len(written) > 8
    assert CANARY not in "\n".join(written)
    assert CANARY not in metrics


def test_prompts_are_shown_to_an_operator_who_asks(checkpoint: Path, log: _Lines) -> None:
    with otlp_receiver() as receiver:
        with run_server(
            checkpoint, otlp_endpoint=receiver.url, trace_prompts=True, log_prompts=True
        ) as server:
            _post(server.url, max_tokens=200, stream=True)
        assert receiver.raw().count(CANARY.encode()) >= 2  # what was asked and what was answered
    (line,) = [line for line in log.lines if json.loads(line)["logger"] == "nybble.prompts"]
    assert line.count(CANARY) >= 2
