"""SIGTERM, SIGINT and kill -9 under load."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.support.drill import MODEL, Load, ask, drill, open_raw
from tests.support.service import wait_until

BODY: dict[str, object] = {
    "model": MODEL,
    "prompt": "x",
    "ignore_eos": True,
    "max_tokens": 60,
    "stream": True,
}
SLOW = {**BODY, "max_tokens": 450}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sigterm_under_load_loses_no_answer() -> None:
    with drill("--echo-faults", "step_seconds=0.002") as process:
        process.wait_until_ready()
        with Load(process.url, 12, "/v1/completions", BODY) as load:
            load.wait_for_more(30)
            process.popen.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    statuses = {answer.status for answer in load.answers}
    assert statuses <= {0, 200, 503}
    for answer in load.answers:
        if answer.status == 200:
            assert answer.is_complete_stream
            assert answer.last_event["choices"][0]["finish_reason"] == "length"
        elif answer.status == 503:
            assert "shutting down" in json.loads(answer.text)["error"]["message"]
        else:
            assert not answer.text


def test_what_outlives_the_drain_gets_an_error_and_a_proper_end() -> None:
    options = ("--drain-timeout", "0.5", "--max-num-seqs", "2")
    with drill("--echo-faults", "step_seconds=0.05", *options) as process:
        process.wait_until_ready()
        with ThreadPoolExecutor(8) as pool:
            # Two run, the others wait.
            streams = [pool.submit(ask, process.url, "/v1/completions", SLOW) for _ in range(4)]
            whole = [
                pool.submit(ask, process.url, "/v1/completions", {**SLOW, "stream": False}) for _ in range(4)
            ]
            wait_until(
                lambda: process.metric("nybble_sequences_in_flight") == 8, seconds=20, what="all are in"
            )
            process.popen.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    begun = [answer.result() for answer in streams if answer.result().status == 200]
    for answer in begun:
        assert answer.is_complete_stream
        assert "had to stop" in answer.last_event["error"]["message"]
    others = [answer.result() for answer in (*streams, *whole) if answer.result().status != 200]
    assert [answer.status for answer in others] == [503] * (8 - len(begun))
    assert all("had to stop" in json.loads(answer.text)["error"]["message"] for answer in others)


def test_a_second_signal_hurries() -> None:
    with drill("--echo-faults", "step_seconds=0.05", "--drain-timeout", "600") as process:
        process.wait_until_ready()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, process.url, "/v1/completions", SLOW)
            wait_until(lambda: process.metric("nybble_num_requests_running") == 1, seconds=20, what="it runs")
            process.popen.send_signal(signal.SIGTERM)
            wait_until(
                lambda: process.health("ready").status_code == 503, seconds=10, what="readiness is off"
            )
            assert process.popen.poll() is None
            process.popen.send_signal(signal.SIGINT)
            assert process.wait() == 0
            assert "had to stop" in answer.result().last_event["error"]["message"]


def test_load_balancers_get_time_to_notice() -> None:
    with drill("--drain-delay", "2") as process:
        process.wait_until_ready()
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: process.health("ready").status_code == 503, seconds=1, what="readiness is off")
        begun = time.monotonic()
        assert ask(process.url, "/v1/completions", BODY).is_complete_stream
        assert process.health("live").status_code == 200
        assert process.wait() == 0
        assert time.monotonic() - begun > 1


def test_a_client_that_reads_nothing_does_not_stop_the_exit() -> None:
    options = ("--drain-timeout", "0.2", "--max-model-len", "100000")
    with drill("--echo-faults", "step_seconds=0", *options) as process:
        process.wait_until_ready()
        with open_raw(process.port, "/v1/completions", {**BODY, "max_tokens": 90_000}) as stalled:
            assert stalled.recv(15) == b"HTTP/1.1 200 OK"
            process.popen.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_after_kill_9_another_process_serves_at_once_on_the_same_port() -> None:
    port = free_port()
    with drill("--echo-faults", "step_seconds=0.002", port=port) as process:
        process.wait_until_ready()
        with Load(process.url, 8, "/v1/completions", BODY) as load:
            load.wait_for_more(10)
            process.popen.kill()
            assert process.wait() == -signal.SIGKILL
            load.wait_for_silence()
    # Nothing pretends to be an answer: what was cut off is seen to be cut off.
    for answer in load.answers:
        assert answer.is_complete_stream == answer.text.endswith("data: [DONE]\n\n")
        assert answer.status in (0, 200)
    assert sum(not answer.is_whole for answer in load.answers) >= 8
    with drill(port=port) as again:
        again.wait_until_ready()
        assert ask(again.url, "/v1/completions", BODY).is_complete_stream
        assert again.metric("nybble_sequences_in_flight") == 0
