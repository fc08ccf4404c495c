"""The demo checkpoint on the CPU engine, served by a real process and judged by the official client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from examples.demo_model.make_demo import make_demo
from tests.support.process import NybbleProcess, serve

RUNNING = "nybble_num_requests_running"
MESSAGES = [{"role": "user", "content": "Tell me something."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NybbleProcess]:
    directory = tmp_path_factory.mktemp("demo") / "checkpoint"
    make_demo(directory)
    with serve(directory, "--served-model-name", "demo") as running:
        yield running


def test_a_streamed_chat_is_the_chat(server: NybbleProcess) -> None:
    with server.client() as client:
        whole = client.chat.completions.create(
            model="demo", messages=MESSAGES, max_tokens=40, temperature=0, seed=1
        )
        stream = client.chat.completions.create(
            model="demo",
            messages=MESSAGES,
            max_tokens=40,
            temperature=0,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_closing_a_stream_frees_the_engine_within_100_ms(server: NybbleProcess) -> None:
    # Not strict: the client's type of a streamed completion has no room for a null finish_reason.
    with server.client(strict=False) as client:
        stream = client.completions.create(
            model="demo",
            prompt="once",
            max_tokens=4000,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        assert server.metric(RUNNING) == 1
        stream.close()
    closed = time.monotonic()
    while server.metric(RUNNING) != 0:
        assert time.monotonic() - closed < 0.1
    assert server.metric("nybble_kv_blocks_used") == 0


async def test_64_streams_give_the_text_each_gives_alone(server: NybbleProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:

        async def text(index: int) -> str:
            stream = await client.completions.create(
                model="demo",
                prompt=f"Story number {index}: " + "long ago " * (index % 9),
                max_tokens=24,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        alone = [await text(index) for index in range(64)]
        together = await asyncio.gather(*(text(index) for index in range(64)))
    assert together == alone
    assert server.metric("nybble_kv_blocks_used") == 0
    assert server.metric(RUNNING) == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        ("chat/completions", {"model": "other", "messages": MESSAGES}, 404, "model_not_found", "other"),
        (
            "completions",
            {"model": "demo", "prompt": [5] * 4096},
            400,
            "context_length_exceeded",
            "4096",
        ),
        (
            "chat/completions",
            {"model": "demo", "messages": [{"role": "assistant", "content": "I begin."}]},
            400,
            None,
            "alternate",
        ),
        ("completions", {"model": "demo", "prompt": [99999]}, 400, None, "99999"),
        ("completions", {"model": "demo", "prompt": "x", "temperature": -1}, 400, None, "temperature"),
    ],
)
def test_refusals_name_what_is_wrong_and_do_no_harm(
    server: NybbleProcess, path: str, body: dict[str, object], status: int, code: str | None, said: str
) -> None:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert said in error["message"]
    if code is not None:
        assert error["code"] == code
    again = httpx.post(f"{server.url}/v1/completions", json={"model": "demo", "prompt": "x", "max_tokens": 1})
    assert again.status_code == 200
