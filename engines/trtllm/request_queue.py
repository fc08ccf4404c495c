"""Which requests are with the runtime and which wait for a place there. Used from one event loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from engines.errors import EngineError
from engines.output_stream import OutputStream
from engines.request import FinishReason, GenerationRequest, TokenOutput
from engines.sequence_clock import SequenceClock
from engines.trtllm.generation import Generation


class Call:
    """One request. `is_over` is set once it holds no place any more; `last_output` follows then.

    `clock` starts when the runtime is handed the request: when it begins to compute it is not told.
    """

    def __init__(self, request: GenerationRequest, generation: Generation, stream: OutputStream) -> None:
        self.request = request
        self.generation = generation
        self.stream = stream
        self.clock = SequenceClock(time.perf_counter())
        self.is_over = asyncio.Event()
        self.has_output = False
        self.last_output: TokenOutput | None = None
        self.task: asyncio.Task[None] | None = None

    def timed(self, output: TokenOutput) -> TokenOutput:
        """The output that has just come, with the timing if it is the first with a token, or the last."""
        now = time.perf_counter()
        is_first = bool(output.token_ids) and self.clock.first_token(now)
        if not is_first and output.finish_reason is None:
            return output
        return replace(output, timing=self.clock.timing(now))


class RequestQueue:
    """At most `capacity` calls run, each in a task made by `run`; the rest wait, the lowest priority number
    first, equal ones in order of arrival."""

    def __init__(self, capacity: int, run: Callable[[Call], Coroutine[Any, Any, None]]) -> None:
        self.capacity = capacity
        self._run = run
        self._calls: dict[str, Call] = {}
        self._waiting: list[tuple[int, int, Call]] = []
        self._running: set[Call] = set()
        self._serial = itertools.count()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def num_unread_prompt_tokens(self) -> int:
        """Prompt tokens of the running calls that have given no output yet."""
        return sum(len(call.request.prompt_token_ids) for call in self._running if not call.has_output)

    def knows(self, request_id: str) -> bool:
        """Whether the id is in use by a request whose stream is still read."""
        return request_id in self._calls

    def find(self, request_id: str) -> Call | None:
        """The call with this id, if its stream is still read."""
        return self._calls.get(request_id)

    def enter(self, call: Call) -> None:
        """Queue the call, and start it at once if there is a place."""
        self._calls[call.request.request_id] = call
        heapq.heappush(self._waiting, (call.request.priority, next(self._serial), call))
        self._fill()

    def forget(self, call: Call) -> None:
        """Nobody reads its stream any more: its id is free, although it may still hold its place."""
        self._calls.pop(call.request.request_id, None)

    def cancel(self, call: Call) -> None:
        """End the call: at once if it waits, else as soon as the runtime lets go of it."""
        if call in self._running:
            call.generation.abort()
            return
        remaining = [entry for entry in self._waiting if entry[2] is not call]
        if len(remaining) != len(self._waiting):
            self._waiting = remaining
            heapq.heapify(self._waiting)
            self._finish(call, _aborted(call))

    def fail_all(self, error: EngineError) -> list[asyncio.Task[None]]:
        """End every stream with `error`. The tasks of what ran are for the caller to end."""
        waiting, self._waiting = self._waiting, []
        running, self._running = self._running, set()
        for call in (*(entry[2] for entry in waiting), *running):
            call.stream.put(error)
            call.is_over.set()
        return [call.task for call in running if call.task is not None]

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.capacity:
            call = heapq.heappop(self._waiting)[2]
            call.clock.start(time.perf_counter())
            self._running.add(call)
            call.task = asyncio.create_task(self._run(call))
            call.task.add_done_callback(partial(self._ended, call))

    def _ended(self, call: Call, _: asyncio.Task[None]) -> None:
        if call in self._running:
            self._running.remove(call)
            self._finish(call, call.last_output)
            self._fill()

    def _finish(self, call: Call, last: TokenOutput | None) -> None:
        """The place is free before the reader can know that the request has ended."""
        call.is_over.set()
        if last is not None:
            call.stream.put(last)


def _aborted(call: Call) -> TokenOutput:
    return TokenOutput(
        token_ids=(),
        logprobs=None if call.request.sampling.num_logprobs is None else (),
        finish_reason=FinishReason.ABORT,
        timing=call.clock.timing(time.perf_counter()),
    )
