"""Every failure has OpenAI's envelope, the right status and an explanation."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.service import RunningServer, run_server

JSON = {"Content-Type": "application/json"}


def error_of(answer: httpx.Response) -> dict[str, str | None]:
    payload = answer.json()
    assert set(payload) == {"error"}
    error: dict[str, str | None] = payload["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    return error


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "tiny" in caught.value.message


def test_unknown_model_in_models(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope/nope")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("num_words", "max_tokens"), [(2000, None), (5, 5000), (2000, 10)], ids=["prompt", "answer", "both"]
)
def test_what_does_not_fit_the_context(
    client: openai.OpenAI, num_words: int, max_tokens: int | None, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "word " * num_words}],
            max_completion_tokens=max_tokens,
            stream=stream,
        )
    assert caught.value.code == "context_length_exceeded"
    assert "512" in caught.value.message


def test_a_prompt_far_too_long_is_refused_without_tokenising(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 5_000_000})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert answer.elapsed.total_seconds() < 2


@pytest.mark.parametrize("prompt", [[1] * 1_100_000, [[1] * 600_000] * 2])
def test_more_ids_than_any_context_holds(http: httpx.Client, prompt: list[object]) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "prompt"
    assert "expected 1048576 at most" in str(error_of(answer)["message"])


def test_a_large_conversation_is_parsed_like_a_small_one(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "x" * 300}] * 500
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert error_of(answer)["code"] == "context_length_exceeded"
    malformed = http.post("/v1/chat/completions", content=b'{"model": "' + b"x" * 100_000, headers=JSON)
    assert malformed.status_code == 400
    assert "not valid JSON: Unterminated string" in str(error_of(malformed)["message"])


@pytest.fixture(scope="module")
def alternating(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose template insists on roles in turn, as Mistral's does."""
    folder = tmp_path_factory.mktemp("alternating")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    with run_server(folder) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_in_the_template_is_the_clients(alternating: RunningServer, stream: bool) -> None:
    with alternating.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
                stream=stream,
            )
        assert caught.value.code == "chat_template_error"
        assert "roles must alternate" in caught.value.message
        assert client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_template_options_that_are_not_the_templates(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    answer = http.post("/v1/chat/completions", json={**body, "chat_template_kwargs": {"tokenize": True}})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "chat_template_error"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_not_text(http: httpx.Client, kind: str) -> None:
    messages = [{"role": "user", "content": [{"type": kind, kind: {}}]}]
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert answer.status_code == 400
    assert kind in str(error_of(answer)["message"])
    assert error_of(answer)["param"] == "messages"


def test_a_model_without_a_template_cannot_chat(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path / name)
    with run_server(tmp_path) as server, httpx.Client(base_url=server.url) as http:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "/v1/completions" in str(error_of(answer)["message"])
        assert http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"model":', JSON),
        (b"[1, 2]", JSON),
        (b"", JSON),
        (b"null", JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (b'{"model": "tiny", "prompt": "x"}', {"Content-Type": "text/plain"}),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', JSON),
        (b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', JSON),
        (b'{"model": "tiny", "prompt": "x", "max_tokens": "5"}', JSON),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 4000 + b"}", JSON),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", JSON),
    ],
)
def test_a_malformed_body(http: httpx.Client, content: bytes, headers: dict[str, str]) -> None:
    answer = http.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"


def test_text_that_is_no_unicode_comes_back_as_a_clean_error(http: httpx.Client) -> None:
    content = json.dumps({"model": "\ud800", "prompt": "x"})
    answer = http.post("/v1/completions", content=content, headers=JSON)
    assert answer.status_code == 404
    assert "`?`" in str(error_of(answer)["message"])


def test_unknown_path_and_wrong_method(http: httpx.Client) -> None:
    missing = http.get("/v1/nothing")
    assert missing.status_code == 404
    assert "GET /v1/nothing" in str(error_of(missing)["message"])
    wrong = http.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"


def test_request_ids_come_back(http: httpx.Client) -> None:
    assert http.get("/version", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    hostile = http.get("/nothing", headers={"X-Request-Id": "a b" * 100})
    assert len(hostile.headers["x-request-id"]) == 32
    assert hostile.json()["error"]["request_id"] == hostile.headers["x-request-id"]
    for bad in ("", "a" * 129, "a\tb", "ä".encode().decode("latin-1"), 'x"y', "a\\b"):
        headers = httpx.Headers([(b"X-Request-Id", bad.encode("latin-1"))])
        assert len(http.get("/version", headers=headers).headers["x-request-id"]) == 32
    assert http.get("/version", headers={"X-Request-Id": "a" * 128}).headers["x-request-id"] == "a" * 128


def test_a_body_over_the_limit(checkpoint: Path) -> None:
    with run_server(checkpoint, max_body_bytes=1000) as server, httpx.Client(base_url=server.url) as http:
        announced = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 2000})
        assert announced.status_code == 413
        assert error_of(announced)["code"] == "request_too_large"
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            # Not one byte of the body is sent: the announcement alone is enough.
            head = "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 1001\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 413"
        parts = (b"x" * 100 for _ in range(20))
        streamed = http.post("/v1/completions", content=parts, headers=JSON)
        assert streamed.status_code == 413
        assert error_of(streamed)["code"] == "request_too_large"
        fits = http.post("/v1/completions", json={"model": "tiny", "prompt": "x" * 20})
        assert fits.status_code == 200


def test_an_unexpected_error_is_a_500_that_tells_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("service.routes.completions.sampling_params", fail)
    with run_server(checkpoint) as server, httpx.Client(base_url=server.url) as http:
        for stream in (False, True):
            body = {"model": "tiny", "prompt": "x", "stream": stream}
            answer = http.post("/v1/completions", json=body, headers={"X-Request-Id": "r1"})
            assert answer.status_code == 500
            assert error_of(answer)["code"] == "internal_error"
            assert "secret" not in answer.text
            assert answer.headers["x-request-id"] == "r1"
        assert server.state.admission.num_in_flight == 0
        assert http.get("/health/ready").status_code == 200
    assert "secret detail" in caplog.text


def test_an_error_in_the_middle_of_a_stream_is_an_event(checkpoint: Path) -> None:
    with run_server(checkpoint, seconds_per_token=0.005) as server:
        body = {"model": "tiny", "prompt": "hello", "stream": True, "ignore_eos": True, "max_tokens": 400}
        with (
            httpx.Client(base_url=server.url) as http,
            http.stream("POST", "/v1/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
            lines = (line for line in answer.iter_lines() if line)
            first = next(lines)
            request_id = json.loads(first.removeprefix("data: "))["id"]
            abort(server, f"{request_id}-0")
            *_, error, done = lines
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_aborted"
        assert done == "data: [DONE]"


def abort(server: RunningServer, request_id: str) -> None:
    """End a request from outside, on the server's own loop."""
    loop = server.loop()
    asyncio.run_coroutine_threadsafe(server.engine.abort(request_id), loop).result(timeout=5)
