"""A healthy runtime from loading to the end, as an orchestrator, Prometheus and clients see it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.lifecycle import Phase
from tests.integration.trtllm.serving import Served, served
from tests.support.fake_tensorrt_llm import Behaviour
from tests.support.service import wait_until

PROMPT = [5, 6, 7]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def startup_phase(server: Served) -> str:
    try:
        answer = httpx.get(f"{server.url}/health/startup")
    except httpx.HTTPError:
        return ""
    return str(answer.json().get("phase")) if answer.status_code == 503 else ""


def metric(server: Served, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").raise_for_status().text
    (line,) = [line for line in text.splitlines() if line.partition(" ")[0] == name]
    return float(line.rpartition(" ")[2])


def drain(server: Served) -> None:
    server.server.handle_exit(signal.SIGTERM, None)


def test_the_phases_of_loading_are_told(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.may_load.clear()
    behaviour.is_hung = True
    with served(checkpoint) as server:
        wait_until(
            lambda: startup_phase(server) == "loading the model into TensorRT-LLM", seconds=20, what="load"
        )
        behaviour.may_load.set()
        wait_until(lambda: startup_phase(server) == "warming up", seconds=20, what="warm-up")
        assert httpx.get(f"{server.url}/health/ready").status_code == 503
        behaviour.is_hung = False
        server.wait_until_ready()
        assert httpx.get(f"{server.url}/health/startup").json()["status"] == "started"


def test_the_runtimes_figures_are_metrics(
    checkpoint: Path, behaviour: Behaviour, threads: ThreadPoolExecutor
) -> None:
    with served(checkpoint, max_num_seqs=2, kv_cache_memory_bytes=1 << 20) as server:
        server.wait_until_ready()
        blocks = behaviour.llms[0]._executor.num_blocks
        assert metric(server, "nybble_kv_blocks") == blocks
        behaviour.is_hung = True
        waiting = [threads.submit(server.complete, PROMPT, max_tokens=200) for _ in range(3)]
        wait_until(lambda: metric(server, "nybble_num_requests_running") == 2, seconds=10, what="two run")
        wait_until(lambda: metric(server, "nybble_num_requests_waiting") == 1, seconds=10, what="one waits")
        behaviour.is_hung = False
        assert [future.result().status_code for future in waiting] == [200] * 3
        assert metric(server, "nybble_generated_tokens_total") == 600
        assert metric(server, "nybble_prompt_tokens_total") == 9
        steps = behaviour.llms[0]._executor
        wait_until(
            lambda: metric(server, "nybble_engine_steps_total") == steps._num_steps, seconds=10, what="steps"
        )
        assert metric(server, "nybble_num_requests_running") == metric(server, "nybble_kv_blocks_used") == 0


def test_time_in_the_queue_and_time_in_the_runtime_are_told_apart(
    checkpoint: Path, behaviour: Behaviour, threads: ThreadPoolExecutor
) -> None:
    with served(checkpoint, max_num_seqs=1) as server:
        server.wait_until_ready()
        before = metric(server, "nybble_request_queue_seconds_count")
        assert server.complete(PROMPT).status_code == 200
        assert metric(server, "nybble_request_queue_seconds_count") == before + 1
        assert metric(server, "nybble_request_prefill_seconds_sum") > 0
        assert metric(server, "nybble_request_decode_seconds_sum") > 0


def test_what_runs_is_finished_before_the_end(
    checkpoint: Path, behaviour: Behaviour, threads: ThreadPoolExecutor
) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        behaviour.is_hung = True
        running = threads.submit(server.complete, PROMPT)
        wait_until(lambda: server.num_running == 1, seconds=10, what="it runs")
        drain(server)
        wait_until(lambda: server.state.lifecycle.phase is Phase.DRAINING, seconds=10, what="draining")
        assert server.complete(PROMPT).status_code == 503
        behaviour.is_hung = False
        assert running.result().status_code == 200
        server.wait_until_ended()
    assert server.server.failure is None
    assert behaviour.llms[0]._is_shut_down


def test_the_end_has_a_deadline(checkpoint: Path, behaviour: Behaviour, threads: ThreadPoolExecutor) -> None:
    behaviour.ignores_shutdown = True
    with served(checkpoint, drain_timeout_seconds=0.2) as server:
        server.wait_until_ready()
        behaviour.is_hung = True
        running = threads.submit(server.complete, PROMPT)
        wait_until(lambda: server.num_running == 1, seconds=10, what="it runs")
        drain(server)
        assert running.result().status_code == 503
        server.wait_until_ended()
    assert server.server.failure is None


def test_a_long_prompt_is_no_hang(
    checkpoint: Path, behaviour: Behaviour, threads: ThreadPoolExecutor
) -> None:
    """200 tokens may take two seconds longer than the stall timeout."""
    with served(checkpoint, stall_timeout_seconds=0.2) as server:
        server.wait_until_ready()
        behaviour.is_hung = True
        running = threads.submit(server.complete, [5] * 200)
        wait_until(lambda: server.num_running == 1, seconds=10, what="it runs")
        deadline = time.monotonic() + 0.6  # three times the stall timeout
        wait_until(lambda: time.monotonic() > deadline, seconds=10, what="a while")
        behaviour.is_hung = False
        assert running.result().status_code == 200
    assert server.server.failure is None


def test_log_probabilities_of_prompt_and_answer(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        answer = server.complete(PROMPT, logprobs=3, echo=True, max_tokens=4)
        assert answer.status_code == 200
        logprobs = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert logprobs[0] is None
        assert len(logprobs) == 7
        assert all(-math.inf < value <= 0 for value in logprobs[1:])


def test_priority_reaches_the_runtime(
    checkpoint: Path, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        seen: list[float] = []
        llm = behaviour.llms[0]
        generate = llm.generate_async

        def record(*arguments: object, **keywords: object) -> object:
            seen.append(keywords["priority"])
            return generate(*arguments, **keywords)

        monkeypatch.setattr(llm, "generate_async", record, raising=True)
        for priority in (-1, 0, 1):
            assert server.complete(PROMPT, priority=priority).status_code == 200
    assert seen[0] > seen[1] == 0.5 > seen[2]
