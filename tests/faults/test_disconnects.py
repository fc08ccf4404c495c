"""Clients that hang up at any moment leave nothing behind: no slot, no KV block, no waiting place."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.drill import MODEL, Drill, ask, drill, open_raw
from tests.support.service import wait_until

_IDLE = ("nybble_num_requests_running", "nybble_num_requests_waiting", "nybble_kv_blocks_used")
_TEXT: dict[str, object] = {"model": MODEL, "ignore_eos": True, "max_tokens": 200}
_CHAT: dict[str, object] = {**_TEXT, "messages": [{"role": "user", "content": "hi"}]}
_REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/completions", {**_TEXT, "prompt": "hello"}),
    ("/v1/completions", {**_TEXT, "prompt": "hello", "stream": True}),
    ("/v1/completions", {**_TEXT, "prompt": ["a", "b", "c"], "stream": True}),
    ("/v1/completions", {**_TEXT, "prompt": "hello", "n": 3}),
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", {**_CHAT, "stream": True}),
    ("/v1/chat/completions", {**_CHAT, "n": 2, "stream": True}),
    ("/v1/chat/completions", {**_CHAT, "n": 2}),
    ("/v1/completions", {**_TEXT, "prompt": "word " * 60, "max_tokens": 1}),
    ("/tokenize", {"model": MODEL, "prompt": "word " * 2000}),
)


def hang_up(port: int, seed: int) -> None:
    """Ask for something and go away, before, while or after it is answered."""
    chance = random.Random(seed)
    path, body = chance.choice(_REQUESTS)
    with open_raw(port, path, body) as connection:
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.05)
        elif chance.random() < 0.5:
            connection.recv(1 + chance.randrange(2000))


def is_zero(process: Drill, name: str) -> bool:
    return process.metric(name) == 0


def hang_up_many(process: Drill, num_requests: int) -> None:
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda seed: hang_up(process.port, seed), range(num_requests)))
    for name in (*_IDLE, "nybble_sequences_in_flight"):
        wait_until(partial(is_zero, process, name), seconds=20, what=f"{name} is 0")
    assert process.health("ready").status_code == 200
    assert process.metric("nybble_requests_cancelled_total") > num_requests / 10
    assert ask(process.url, "/v1/completions", {**_TEXT, "prompt": "x", "max_tokens": 3}).status == 200
    assert "Traceback" not in process.log


def test_a_thousand_disconnects_leave_nothing_behind() -> None:
    options = ("--max-num-seqs", "8", "--max-queued-requests", "1000")
    with drill("--echo-faults", "step_seconds=0.002", *options) as process:
        process.wait_until_ready()
        hang_up_many(process, 1000)


@pytest.mark.parametrize(
    "num_requests", [100, pytest.param(1000, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_disconnects_free_the_cpu_engines_blocks(num_requests: int) -> None:
    options = ("--max-num-seqs", "4", "--max-queued-requests", "1000", "--num-threads", "1")
    with drill(*options, engine="cpu") as process:
        process.wait_until_ready()
        hang_up_many(process, num_requests)
