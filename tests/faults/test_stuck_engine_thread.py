"""The CPU engine's thread is stuck in a step and cannot even be closed: the process ends all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.drill import MODEL, ask, drill
from tests.support.service import wait_until

BODY: dict[str, object] = {"model": MODEL, "prompt": "x", "ignore_eos": True, "max_tokens": 100}

STUCK_MAIN = """
import threading
from engines.cpu.core import EngineCore
step, steps = EngineCore.step, []
def stuck(core):
    steps.append(None)
    if len(steps) == 20:
        threading.Event().wait()
    return step(core)
EngineCore.step = stuck
from service.cli import main
main()
"""


@pytest.mark.long
def test_a_stuck_thread_is_left_behind() -> None:
    options = ("--readiness-stall", "0.5", "--stall-timeout", "2", "--num-threads", "1")
    with drill(*options, engine="cpu", main=STUCK_MAIN) as process:
        process.wait_until_ready()
        with ThreadPoolExecutor(4) as pool:
            streams = [
                pool.submit(ask, process.url, "/v1/completions", {**BODY, "stream": True}) for _ in range(2)
            ]
            whole = [pool.submit(ask, process.url, "/v1/completions", BODY) for _ in range(2)]
            wait_until(
                lambda: process.health("ready").status_code == 503, seconds=20, what="readiness is off"
            )
            for stream in streams:
                assert stream.result().is_complete_stream
                assert stream.result().last_event["error"]["code"] == "engine_unavailable"
            assert [answer.result().status for answer in whole] == [503, 503]
        assert process.wait(60) == 1
    assert "ended by force" in process.log
    assert "made no progress" in process.log.splitlines()[-1]
