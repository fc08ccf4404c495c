"""A mix of requests as production sees them, at an open-loop rate: arrivals wait for nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.exchange import Exchange, exchange

MODEL = "soak"
TIMEOUT_SECONDS = 120.0
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "dark", "green", "woods")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request, how often it comes, and the share of it whose client hangs up."""

    name: str
    weight: float
    path: str
    body: Callable[[random.Random], Body]
    cancelled_share: float = 0.0


def _prompt(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(num_words))


def _chat(rng: random.Random, **fields: Any) -> Body:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": _prompt(rng, rng.randint(5, 60))}],
        "max_tokens": rng.randint(8, 40),
        **fields,
    }


def _streamed(rng: random.Random) -> Body:
    return _chat(rng, stream=True, stream_options={"include_usage": True})


def _completion(rng: random.Random) -> Body:
    return {"model": MODEL, "prompt": _prompt(rng, 20), "max_tokens": rng.randint(8, 40)}


def _long_prompt(rng: random.Random) -> Body:
    return {"model": MODEL, "prompt": _prompt(rng, 400), "max_tokens": 8}


KINDS = (
    Kind("chat stream", 40, _CHAT, _streamed, cancelled_share=0.1),
    Kind("chat", 20, _CHAT, _chat, cancelled_share=0.1),
    Kind("completion", 15, _COMPLETIONS, _completion),
    Kind("three answers", 5, _CHAT, lambda rng: _chat(rng, n=3), cancelled_share=0.2),
    Kind("long prompt", 5, _COMPLETIONS, _long_prompt),
    Kind("no such model", 3, _CHAT, lambda rng: {**_chat(rng), "model": "other"}),
    Kind("bad field", 5, _CHAT, lambda rng: _chat(rng, temperature=7)),
    Kind("too long", 2, _COMPLETIONS, lambda rng: {"model": MODEL, "prompt": _prompt(rng, 9000)}),
    Kind("tokenize", 5, "/tokenize", lambda rng: {"model": MODEL, "prompt": _prompt(rng, 50)}),
)


class Traffic:
    """Poisson arrivals of the mix; every exchange is kept."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.exchanges: list[Exchange] = []

    async def run(
        self, requests_per_second: float, seconds: float, on_second: Callable[[], Awaitable[None]]
    ) -> None:
        """Send for `seconds`, calling `on_second` about every second; then wait for the last answer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        due = loop.time()
        next_second = due
        while due < end:
            if due >= next_second:
                next_second += 1.0
                await on_second()
            # Arrivals that fell behind are sent at once: the load does not soften when the client is slow.
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._send_one()
            due += self._rng.expovariate(requests_per_second)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _send_one(self) -> None:
        rng = self._rng
        (kind,) = rng.choices(KINDS, [kind.weight for kind in KINDS])
        cancel_after = rng.uniform(0.0, 1.0) if rng.random() < kind.cancelled_share else None
        task = asyncio.create_task(self._exchange(kind, kind.body(rng), cancel_after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, kind: Kind, body: Body, cancel_after_seconds: float | None) -> None:
        self.exchanges.append(
            await exchange(
                self._port,
                kind.name,
                kind.path,
                body,
                timeout_seconds=TIMEOUT_SECONDS,
                cancel_after_seconds=cancel_after_seconds,
            )
        )
