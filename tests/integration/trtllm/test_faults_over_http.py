"""What clients and the orchestrator see when TensorRT-LLM fails. A `failure` is an exit status not 0."""

from __future__ import annotations

import asyncio
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import httpx

from engines.base import EngineOptions
from engines.registry import create_engine
from engines.request import TokenOutput
from engines.trtllm.manifest import MANIFEST_FILE, BuildOptions, Canary, Manifest
from service.lifecycle import Phase
from tests.integration.trtllm.serving import Served, served
from tests.support.fake_tensorrt_llm import Behaviour
from tests.support.generation import collect, joined, make_request
from tests.support.gpu_machines import B200
from tests.support.service import wait_until

PROMPT = [5, 6, 7]
REFUSED, FAILING = 300, 301


def error_of(answer: httpx.Response) -> dict[str, str]:
    error: dict[str, str] = answer.json()["error"]
    return error


def test_a_healthy_one_answers_and_ends_well(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        answer = server.complete(PROMPT, logprobs=2)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 8
    assert server.server.failure is None


def test_a_refused_request_is_the_callers_fault(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.refused_token = REFUSED
    with served(checkpoint) as server:
        server.wait_until_ready()
        answer = server.complete([REFUSED])
        assert answer.status_code == 400
        assert "the prompt is refused" in error_of(answer)["message"]
        assert server.complete(PROMPT).status_code == 200
    assert server.server.failure is None


def test_a_bad_parameter_never_reaches_the_runtime(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        num_received = len(behaviour.received)
        for fields in ({"top_p": 2}, {"logit_bias": {"320": 1}}, {"max_tokens": 1000}, {"temperature": -1}):
            assert server.complete(PROMPT, **fields).status_code == 400
        assert len(behaviour.received) == num_received
    assert server.server.failure is None


def test_a_request_that_fails_while_it_runs_fails_alone(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.failing_token = FAILING
    with served(checkpoint) as server, ThreadPoolExecutor() as threads:
        server.wait_until_ready()
        other = threads.submit(server.complete, PROMPT, max_tokens=200)
        answer = server.complete([FAILING])
        assert answer.status_code == 500
        assert error_of(answer)["code"] == "generation_failed"
        assert other.result().status_code == 200
        assert server.complete(PROMPT).status_code == 200
    assert server.server.failure is None


def test_a_rank_crash_fails_what_runs_and_ends_the_process(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server, ThreadPoolExecutor() as threads:
        server.wait_until_ready()
        behaviour.is_hung = True  # until all three run
        futures = [threads.submit(server.complete, PROMPT) for _ in range(3)]
        wait_until(lambda: server.num_running == 3, seconds=10, what="three requests run")
        behaviour.crash_after_tokens = 0
        behaviour.is_hung = False
        for answer in [future.result() for future in futures]:
            assert answer.status_code == 503
            assert "rank 1 has crashed" in error_of(answer)["message"]
        server.wait_until_ended()
    assert "rank 1 has crashed" in server.failure


def test_a_rank_crash_amid_a_stream_is_told_in_the_stream(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        behaviour.crash_after_tokens = behaviour.num_tokens + 20
        answer = server.complete(PROMPT, max_tokens=200, stream=True)
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if "data: {" in line]
        assert len(events) > 1
        assert "rank 1 has crashed" in json.loads(events[-1])["error"]["message"]
        server.wait_until_ended()
    assert "rank 1 has crashed" in server.failure


def test_a_hang_is_noticed_and_ends_the_process(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint, stall_timeout_seconds=0.3) as server:
        server.wait_until_ready()
        behaviour.is_hung = True
        answer = server.complete(PROMPT)
        assert answer.status_code == 503
        assert "no step and no token for" in error_of(answer)["message"]
        server.wait_until_ended()
    assert "no step and no token for" in server.failure


def test_a_lost_rank_ends_the_process_even_when_nobody_asks(checkpoint: Path, behaviour: Behaviour) -> None:
    with served(checkpoint) as server:
        server.wait_until_ready()
        behaviour.is_rank_lost = True
        server.wait_until_ended()
    assert "reports itself unhealthy" in server.failure


def test_a_runtime_that_will_not_end_does_not_keep_the_process(
    checkpoint: Path, behaviour: Behaviour
) -> None:
    behaviour.ignores_shutdown = True
    with served(checkpoint) as server:
        server.wait_until_ready()
    assert server.server.failure is None


def test_out_of_memory_at_load_says_what_to_do(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.is_out_of_memory = True
    with served(checkpoint) as server:
        server.wait_until_ended()
    assert "out of memory" in server.failure
    assert "--max-model-len" in server.failure


def test_a_load_without_end_is_not_ready_and_can_be_ended(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.may_load.clear()
    with served(checkpoint) as server:
        wait_until(lambda: _is_live(server), seconds=10, what="live")
        assert httpx.get(f"{server.url}/health/ready").status_code == 503
    assert server.server.failure is None
    assert behaviour.llms == []
    behaviour.may_load.set()  # its thread is still there


def test_a_model_that_is_loaded_after_the_end_is_shut_down(checkpoint: Path, behaviour: Behaviour) -> None:
    behaviour.may_load.clear()
    with served(checkpoint, shutdown_seconds=20) as server:
        wait_until(lambda: _is_live(server), seconds=10, what="live")
        server.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: server.state.lifecycle.phase is Phase.DRAINING, seconds=10, what="draining")
        behaviour.may_load.set()
    assert [llm._is_shut_down for llm in behaviour.llms] == [True]


def test_canaries_that_are_answered_rightly_let_it_serve(
    checkpoint: Path, behaviour: Behaviour, tmp_path: Path
) -> None:
    with served(built(checkpoint, tmp_path)) as server:
        server.wait_until_ready()
        assert server.complete(PROMPT).status_code == 200


def test_a_canary_mismatch_is_never_ready(checkpoint: Path, behaviour: Behaviour, tmp_path: Path) -> None:
    directory = built(checkpoint, tmp_path)
    behaviour.has_wrong_kernels = True
    with served(directory) as server:
        server.wait_until_ended()
    assert "1 of 1 canary prompts are answered wrongly" in server.failure


def _is_live(server: Served) -> bool:
    try:
        return httpx.get(f"{server.url}/health/live").status_code == 200
    except httpx.HTTPError:
        return False


async def answer_of_the_fake(checkpoint: Path) -> list[TokenOutput]:
    engine = create_engine("trtllm", EngineOptions(checkpoint, max_model_len=256))
    await engine.start()
    try:
        return await collect(engine, make_request((9, 8, 7), num_logprobs=0))
    finally:
        await engine.close()


def built(checkpoint: Path, directory: Path) -> Path:
    """What `nybble build` would have made of the checkpoint, with a canary that the fake answers rightly."""
    outputs = asyncio.run(answer_of_the_fake(checkpoint))
    logprobs = tuple(entry.logprob for output in outputs for entry in output.logprobs or ())
    manifest = Manifest(
        manifest_version=1,
        nybble_version="0",
        created_at="2026-01-01T00:00:00Z",
        path="pytorch",
        build_key="0",
        source=str(checkpoint),
        source_digest="0",
        source_layout="modelopt NVFP4",
        target="b200",
        target_sm=100,
        tensorrt_llm_version="1.4.0rc1",
        machine=replace(B200),
        options=BuildOptions(1, 64, 256, 2048, "bfloat16"),
        argv=(),
        files=(),
        canaries=(Canary((9, 8, 7), tuple(joined(outputs)), logprobs, (9.0,) * 8),),
    )
    for path in checkpoint.iterdir():
        (directory / path.name).symlink_to(path)
    (directory / MANIFEST_FILE).write_text(json.dumps(asdict(manifest)))
    return directory
