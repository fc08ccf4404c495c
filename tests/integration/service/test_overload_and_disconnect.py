"""A full house, and clients that go away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import orjson
import pytest

from tests.support.raw_request import open_request
from tests.support.service import RunningServer, run_server, wait_until

ENDLESS: dict[str, object] = {"model": "tiny", "ignore_eos": True, "max_tokens": 450}
CHAT = {**ENDLESS, "messages": [{"role": "user", "content": "hi"}]}
TEXT = {**ENDLESS, "prompt": "hi"}


@pytest.fixture(scope="module")
def slow(checkpoint: Path) -> Iterator[RunningServer]:
    """One sequence at a time, two more may wait, an answer takes many seconds."""
    with run_server(
        checkpoint, seconds_per_token=0.02, max_num_seqs=1, max_queued_requests=2, heartbeat_seconds=0.05
    ) as server:
        yield server


def test_more_than_the_bound_is_refused_with_retry_after(slow: RunningServer) -> None:
    held = [open_request(slow, "/v1/completions", TEXT) for _ in range(3)]
    wait_until(lambda: slow.state.admission.num_in_flight == 3, seconds=5, what="one runs, two wait")
    wait_until(lambda: slow.num_in_engine() == 2, seconds=5, what="the engine has one more than it runs")
    try:
        with slow.client() as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.status_code == 503
        assert caught.value.code == "server_is_overloaded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        streamed = httpx.post(f"{slow.url}/v1/completions", json={**TEXT, "stream": True})
        assert streamed.status_code == 503
        assert slow.num_in_engine() == 2
        assert slow.state.admission.num_queued == 1
        assert "nybble_num_requests_waiting 2.0" in slow.metrics()
        assert httpx.get(f"{slow.url}/health/ready").status_code == 200
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: slow.num_in_engine() == 0, seconds=5, what="all gone")
    wait_until(lambda: slow.state.admission.num_in_flight == 0, seconds=5, what="slots are free")
    assert 'nybble_requests_rejected_total{reason="overloaded"} 2.0' in slow.metrics()


def test_more_choices_than_there_are_slots_can_never_be_served(slow: RunningServer) -> None:
    answer = httpx.post(f"{slow.url}/v1/chat/completions", json={**CHAT, "n": 4})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "num_sequences"),
    [
        ("/v1/chat/completions", CHAT, 1),
        ("/v1/completions", TEXT, 1),
        ("/v1/chat/completions", {**CHAT, "n": 3}, 3),
        ("/v1/completions", {**TEXT, "prompt": ["a", "b"]}, 2),
    ],
)
def test_a_disconnect_ends_the_work_within_100_ms(
    slow: RunningServer, path: str, body: dict[str, object], num_sequences: int, stream: bool
) -> None:
    connection = open_request(slow, path, {**body, "stream": stream})
    wait_until(lambda: slow.engine.stats().num_running == 1, seconds=5, what="it runs")
    wait_until(
        lambda: slow.num_in_engine() + slow.state.admission.num_queued == num_sequences,
        seconds=5,
        what="all choices are in",
    )
    if stream:
        connection.recv(1)
    connection.close()
    wait_until(lambda: slow.num_in_engine() == 0, seconds=0.1, what="the engine is idle again")
    wait_until(lambda: slow.state.admission.num_in_flight == 0, seconds=0.1, what="slots are free")
    assert slow.state.admission.num_queued == slow.state.admission.num_queued_tokens == 0


def test_a_queued_request_is_dropped_when_its_client_leaves(slow: RunningServer) -> None:
    running = open_request(slow, "/v1/completions", TEXT)
    wait_until(lambda: slow.engine.stats().num_running == 1, seconds=5, what="the first runs")
    queued = open_request(slow, "/v1/chat/completions", {**CHAT, "stream": True})
    wait_until(lambda: slow.engine.stats().num_waiting == 1, seconds=5, what="the second waits")
    queued.close()
    wait_until(lambda: slow.engine.stats().num_waiting == 0, seconds=0.1, what="the queue is empty")
    assert slow.engine.stats().num_running == 1
    running.close()
    wait_until(lambda: slow.num_in_engine() == 0, seconds=0.1, what="the engine is idle again")


def test_a_request_in_front_of_the_engine_is_dropped_when_its_client_leaves(slow: RunningServer) -> None:
    admission = slow.state.admission
    held = [open_request(slow, "/v1/completions", TEXT) for _ in range(2)]
    wait_until(lambda: slow.num_in_engine() == 2, seconds=5, what="the engine is full")
    queued = open_request(slow, "/v1/completions", TEXT)
    wait_until(lambda: admission.num_queued == 1, seconds=5, what="the third waits")
    queued.close()
    wait_until(lambda: admission.num_queued == 0, seconds=0.1, what="the queue is empty")
    wait_until(lambda: admission.num_in_flight == 2, seconds=0.1, what="its place is free")
    for connection in held:
        connection.close()
    wait_until(lambda: slow.num_in_engine() == 0, seconds=0.1, what="the engine is idle again")


def test_the_official_client_breaks_off(slow: RunningServer) -> None:
    before = slow.metric("nybble_requests_cancelled_total")
    with slow.client() as client:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in range(3):
            next(stream)
        stream.close()
        wait_until(lambda: slow.num_in_engine() == 0, seconds=0.1, what="the engine is idle again")
    assert slow.metric("nybble_requests_cancelled_total") == before + 1


def test_a_silent_stream_is_kept_alive_by_comments(slow: RunningServer) -> None:
    running = open_request(slow, "/v1/completions", TEXT)
    wait_until(lambda: slow.engine.stats().num_running == 1, seconds=5, what="the first runs")
    with httpx.stream("POST", f"{slow.url}/v1/completions", json={**TEXT, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", ""] * 2
    running.close()
    wait_until(lambda: slow.num_in_engine() == 0, seconds=5, what="the engine is idle again")


def test_many_streams_at_once_give_what_each_gives_alone(checkpoint: Path) -> None:
    with run_server(checkpoint, max_num_seqs=8) as server:

        def answer(index: int) -> str:
            body = {"model": "tiny", "prompt": f"number {index} ", "stream": True, "max_tokens": 60}
            text = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).text
            lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
            return "".join(orjson.loads(line)["choices"][0]["text"] for line in lines)

        alone = [answer(index) for index in range(24)]
        together = [""] * 24

        def run(index: int) -> None:
            together[index] = answer(index)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert together == alone
        assert len(set(alone)) == 24
        assert server.state.admission.num_in_flight == 0
