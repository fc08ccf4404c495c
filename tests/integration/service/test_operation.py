"""Models, probes, metrics, version, tokenising, and the life of the process as the routes see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest

from engines.base import Engine
from service.app import create_app
from tests.support.service import RunningServer, open_settings, run_server, wait_until


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny", "org/tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_model_name_with_a_slash(http: httpx.Client) -> None:
    for path in ("/v1/models/org/tiny", "/v1/models/org%2Ftiny"):
        card = http.get(path).json()
        assert card["id"] == "org/tiny"
        assert card["object"] == "model"
        assert card["max_model_len"] == 512
        assert card["root"] == "tiny"


def test_probes_and_version(http: httpx.Client) -> None:
    assert http.get("/health/live").json() == {"status": "live"}
    assert http.get("/health/ready").json() == {"status": "ready"}
    assert set(http.get("/version").json()) == {"version"}


async def test_before_the_model_is_loaded(checkpoint: Path) -> None:
    def never() -> Engine:
        raise AssertionError("the lifespan does not run here")

    app = create_app(open_settings(checkpoint), never)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/health/live")).status_code == 200
        ready = await http.get("/health/ready")
        assert ready.status_code == 503
        assert "loading" in ready.json()["error"]["message"]
        for stream in (False, True):
            body = {"model": checkpoint.name, "prompt": "x", "stream": stream}
            refused = await http.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert card["max_model_len"] is None
    app.state.service.close()


def test_a_dead_engine_ends_the_server(checkpoint: Path) -> None:
    with run_server(checkpoint) as server:
        asyncio.run_coroutine_threadsafe(server.engine.close(), server.loop()).result(timeout=5)
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        wait_until(lambda: not server.thread.is_alive(), seconds=10, what="the server has stopped")
        assert server.server.failure is not None
        assert "closed" in server.server.failure


def test_draining_refuses_new_work_but_answers_probes(checkpoint: Path) -> None:
    with run_server(checkpoint) as server, httpx.Client(base_url=server.url) as http:
        server.state.lifecycle.begin_drain()
        assert http.get("/health/live").status_code == 200
        ready = http.get("/health/ready")
        assert ready.status_code == 503
        assert "shutting down" in ready.json()["error"]["message"]
        for stream in (False, True):
            refused = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "stream": stream})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1


def test_metrics_count_what_happened(checkpoint: Path) -> None:
    with run_server(checkpoint) as server:
        with server.client() as client:
            client.completions.create(
                model="tiny", prompt="abc", max_tokens=5, n=2, extra_body={"ignore_eos": True}
            )
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("absent")
        assert server.metric('nybble_sequences_finished_total{reason="length"}') == 2
        assert server.metric("nybble_generated_tokens_total") == 10
        assert server.metric("nybble_time_to_first_token_seconds_count") == 2
        assert server.metric("nybble_inter_token_seconds_count") == 8
        assert server.metric("nybble_request_seconds_count") == 2
        assert server.metric("nybble_request_generated_tokens_sum") == 10
        assert server.metric('nybble_requests_rejected_total{reason="model_not_found"}') == 1
        assert server.metric("nybble_num_requests_running") == 0
        assert server.metric("nybble_num_requests_waiting") == 0
        assert server.metric("nybble_sequences_in_flight") == 0
        assert server.metric('nybble_model_info{model_name="tiny"}') == 1
        route = 'nybble_http_requests_total{method="POST",route="/v1/completions",status="200"}'
        assert server.metric(route) == 1


def test_tokenize_and_back(http: httpx.Client) -> None:
    text = "héllo wörld 🦊"
    answer = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    with_special = http.post("/tokenize", json={"prompt": text, "model": "tiny"}).json()
    assert with_special["tokens"] == [1, *answer["tokens"]]


def test_two_apps_in_one_process_share_nothing(echo: RunningServer, checkpoint: Path) -> None:
    with run_server(checkpoint, served_model_names=("other",)) as server:
        assert [card["id"] for card in server.get("/v1/models")["data"]] == ["other"]
        assert [card["id"] for card in echo.get("/v1/models")["data"]] == ["tiny", "org/tiny"]


def test_names_default_to_the_folder(checkpoint: Path) -> None:
    assert open_settings(checkpoint).model_names == (checkpoint.name,)
