"""An engine that dies, hangs or blocks everything in the middle: nobody is left without an answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.drill import MODEL, Answer, Drill, ask, drill
from tests.support.service import wait_until

LONG: dict[str, object] = {"model": MODEL, "prompt": "x", "ignore_eos": True, "max_tokens": 400}


def ask_many(process: Drill, num_requests: int, *, stream: bool) -> list[Answer]:
    with ThreadPoolExecutor(num_requests) as pool:
        body = {**LONG, "stream": stream}
        return list(pool.map(lambda _: ask(process.url, "/v1/completions", body), range(num_requests)))


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_dies_answers_everybody_and_takes_the_process_down(stream: bool) -> None:
    faults = "step_seconds=0.001,die_after_tokens=300"
    with drill("--echo-faults", faults, "--max-num-seqs", "4") as process:
        process.wait_until_ready()
        answers = ask_many(process, 8, stream=stream)
        assert process.wait() == 1
    assert "error: the echo engine was told to die after 300 tokens" in process.log
    assert len(answers) == 8
    for answer in answers:
        assert answer.is_whole
        if answer.status == 200:
            assert answer.is_complete_stream
            assert answer.last_event["error"]["code"] == "engine_unavailable"
        else:
            assert answer.status == 503
    assert any(answer.status == 200 for answer in answers) is stream


def test_an_engine_that_hangs_loses_readiness_then_everybody_is_answered_and_the_process_ends() -> None:
    options = ("--readiness-stall", "0.5", "--stall-timeout", "3")
    faults = "step_seconds=0.001,hang_after_tokens=300"
    with drill("--echo-faults", faults, *options) as process:
        process.wait_until_ready()
        with ThreadPoolExecutor(2) as pool:
            streams = pool.submit(ask_many, process, 4, stream=True)
            whole = pool.submit(ask_many, process, 4, stream=False)
            wait_until(
                lambda: process.health("ready").status_code == 503, seconds=20, what="readiness is off"
            )
            refused = process.health("ready").json()["error"]["message"]
            assert process.health("live").status_code == 200
            assert process.health("startup").status_code == 200
            assert ask(process.url, "/v1/completions", LONG).status == 503
            assert process.wait() == 1
        assert "made no progress" in refused
        for answer in streams.result():
            assert answer.is_complete_stream
            assert answer.last_event["error"]["code"] == "engine_unavailable"
        assert [answer.status for answer in whole.result()] == [503] * 4
    assert "made no progress" in process.log.splitlines()[-1]


def test_readiness_comes_back_when_the_engine_goes_on() -> None:
    faults = "hang_after_tokens=100,hang_seconds=1.5"
    with drill("--echo-faults", faults, "--readiness-stall", "0.3") as process:
        process.wait_until_ready()
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(ask_many, process, 3, stream=True)
            wait_until(
                lambda: process.health("ready").status_code == 503, seconds=20, what="readiness is off"
            )
            wait_until(lambda: process.health("ready").status_code == 200, seconds=20, what="readiness is on")
            assert [answer.last_event["choices"][0]["finish_reason"] for answer in answers.result()] == [
                "length"
            ] * 3
        assert ask(process.url, "/v1/completions", {**LONG, "max_tokens": 5}).status == 200


def test_a_long_prefill_is_no_standstill() -> None:
    faults = "prefill_step_seconds=0.1"
    with drill(
        "--echo-faults", faults, "--readiness-stall", "0.5", "--max-num-batched-tokens", "20"
    ) as process:
        process.wait_until_ready()
        seen = set()
        with ThreadPoolExecutor(1) as pool:
            prompt = [5] * 400
            asked = pool.submit(
                ask, process.url, "/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 2}
            )
            while not asked.done():
                seen.add(process.health("ready").status_code)
                assert asked.done() or process.metric("nybble_num_requests_running") <= 1
            assert asked.result().status == 200
        assert seen == {200}


def test_a_blocked_event_loop_is_seen_from_the_health_port() -> None:
    faults = "block_after_requests=1,block_seconds=3"
    with drill("--echo-faults", faults, "--liveness-timeout", "1") as process:
        process.wait_until_ready()
        short = {**LONG, "max_tokens": 5}
        assert ask(process.url, "/v1/completions", short).status == 200
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=process.health_url) as http:
            asked = pool.submit(ask, process.url, "/v1/completions", short)
            wait_until(
                lambda: http.get("/health/live").status_code == 503, seconds=20, what="it counts as blocked"
            )
            assert "event loop" in http.get("/health/live").json()["reason"]
            assert http.get("/health/ready").status_code == 503
            begun = time.monotonic()
            assert http.get("/metrics").status_code == 200
            assert time.monotonic() - begun < 1
            assert not asked.done()
            assert asked.result().status == 200
            wait_until(lambda: http.get("/health/live").status_code == 200, seconds=20, what="it lives")
            wait_until(lambda: http.get("/health/ready").status_code == 200, seconds=20, what="it is ready")


def test_a_slow_start_says_how_far_it_is() -> None:
    with drill("--echo-faults", "start_seconds=3") as process:
        seen = []
        while True:
            ready, live = process.health("ready").status_code, process.health("live").status_code
            answer = process.health("startup")
            assert live == 200
            if answer.status_code == 200:
                break
            assert ready == 503
            seen.append(answer.json())
        assert answer.json()["status"] == "started"
        assert answer.json()["elapsed_seconds"] >= 3
    told = [body for body in seen if body["fraction"] is not None]
    assert {body["phase"] for body in told} == {"pretending to load"}
    fractions = [body["fraction"] for body in told]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > 3
    late = told[-1]
    assert late["eta_seconds"] == pytest.approx(3 * (1 - late["fraction"]), abs=0.1)


def test_a_start_that_fails_says_why_and_ends_the_process() -> None:
    with drill("--echo-faults", "start_fails=1") as process:
        assert process.wait() == 1
    assert process.log.splitlines()[-1].startswith("error: the echo engine was told to fail its start")
