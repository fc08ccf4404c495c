"""The engine without a model: it says the prompt again.

It keeps every promise of `engines.base` and costs next to nothing, so it is what the service is load-tested
with, and the shortest complete example of an engine. What shapes a distribution (temperature, penalties,
logit bias, seed) is checked, and then without effect: there is no distribution.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from typing import Any

from engines.base import Engine, EngineInfo, EngineOptions, EngineStats, LoadProgress
from engines.echo_answer import answer
from engines.echo_faults import EchoFaults
from engines.echo_model import ModelFacts, read_model_facts
from engines.errors import EngineDead, EngineUnavailable, InvalidRequest, StartFailed
from engines.request import FinishReason, GenerationRequest, TokenOutput
from engines.request_checks import check_request
from engines.sequence_clock import SequenceClock

_DEFAULT_MAX_MODEL_LEN = 4096


class EchoEngine(Engine):
    """Generates the prompt's tokens again, in a cycle, one per output.

    After one repetition it ends with an end-of-sequence token; with `ignore_eos` it goes on to `max_tokens`.
    End-of-sequence ids within the prompt are left out of the repetition unless `ignore_eos` is set.

    At most `options.max_num_seqs` requests run at a time; the others wait in order of arrival, whatever their
    priority. A request holds its slot while its consumer is slow: tokens are made when they are asked for.
    Vocabulary, end-of-sequence ids and context come from `config.json` in `options.checkpoint` if that is
    given, else from the arguments. `seconds_per_token` is a pause before each token; `options.echo_faults`
    says what else is slow or goes wrong, see `engines.echo_faults`.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        vocab_size: int = 320,
        eos_token_ids: frozenset[int] = frozenset({2}),
        seconds_per_token: float = 0.0,
    ) -> None:
        self._options = options
        self._model = ModelFacts(vocab_size, eos_token_ids, _DEFAULT_MAX_MODEL_LEN)
        self._seconds_per_token = seconds_per_token
        self._faults = EchoFaults()
        self._info: EngineInfo | None = None
        self._load_started: float | None = None
        self._closed = False
        self._death: str | None = None
        self._died = asyncio.Event()
        self._going = asyncio.Event()  # cleared while the engine hangs
        self._going.set()
        self._has_faults = False
        self._has_hung = False
        self._streams: dict[str, _Stream] = {}
        self._waiting: deque[_Stream] = deque()
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_requests = 0
        self._num_prefill_steps = 0
        self._num_idle_steps = 0

    async def start(self) -> None:
        """Read `config.json`, if there is a checkpoint; MalformedCheckpoint when that fails.

        Raises StartFailed when it is told to, and for faults it does not know.
        """
        options = self._options
        self._faults = EchoFaults.parse(options.echo_faults)
        self._has_faults = self._faults != EchoFaults()
        self._seconds_per_token = self._faults.step_seconds or self._seconds_per_token
        self._load_started = time.monotonic()
        try:
            await asyncio.sleep(self._faults.start_seconds)
            if self._faults.start_fails:
                raise StartFailed("the echo engine was told to fail its start (echo_faults: start_fails)")
        finally:
            self._load_started = None
        if options.checkpoint is not None:
            self._model = read_model_facts(options.checkpoint / "config.json", self._model)
        self._info = EngineInfo(
            engine="echo",
            vocab_size=self._model.vocab_size,
            max_model_len=options.max_model_len or self._model.max_model_len,
            eos_token_ids=self._model.eos_token_ids,
            block_size=options.block_size,
            num_blocks=0,
            max_num_seqs=options.max_num_seqs,
            max_num_logprobs=min(20, self._model.vocab_size),
        )

    def load_progress(self) -> LoadProgress | None:
        """See `Engine.load_progress`; it only pretends to load."""
        started = self._load_started
        if started is None:
            return None
        seconds = time.monotonic() - started
        return LoadProgress(
            "pretending to load", seconds, min(1.0, seconds / (self._faults.start_seconds or 1e-9))
        )

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine; EngineUnavailable before `start`."""
        if self._info is None:
            raise EngineUnavailable("the echo engine has not been started; await start() first")
        return self._info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """See `Engine.generate`."""
        stream = self._enter(request)
        clock = SequenceClock(time.perf_counter())
        try:
            await stream.proceed.wait()
            clock.start(time.perf_counter())
            if not stream.is_ended:
                stream.is_asked = True
                await self._prefill(request, stream)
            for made in answer(request, self.info):
                stream.is_asked = True
                # Without this pause a consumer that never waits would keep all others from running.
                await asyncio.sleep(self._seconds_per_token)
                if self._has_faults:
                    await self._misbehave(stream, "tokens", self._num_generated_tokens)
                if stream.is_ended:
                    break
                self._num_generated_tokens += len(made.token_ids)
                stream.is_asked = False
                if made.finish_reason is not None:
                    self._leave(stream)
                    yield _timed(made, clock)
                    return
                yield made if clock.first_token_at is not None else _timed(made, clock)
            if stream.error is not None:
                raise stream.error
            yield TokenOutput(
                token_ids=(),
                logprobs=None if request.sampling.num_logprobs is None else (),
                finish_reason=FinishReason.ABORT,
                timing=clock.timing(time.perf_counter()),
            )
        finally:
            self._leave(stream)

    async def _prefill(self, request: GenerationRequest, stream: _Stream) -> None:
        """Take the prompt in, a chunk in a step."""
        await self._misbehave(stream, "requests", self._num_requests)
        self._num_requests += 1
        self._num_prompt_tokens += len(request.prompt_token_ids)
        if not self._faults.prefill_step_seconds:
            return
        for _ in range(0, len(request.prompt_token_ids), self._options.max_num_batched_tokens):
            await stream.wait(asyncio.sleep(self._faults.prefill_step_seconds))
            if stream.is_ended:
                return
            self._num_prefill_steps += 1

    async def _misbehave(self, stream: _Stream, unit: str, num_done: int) -> None:
        """What `EchoFaults` has in store for the moment when so many tokens or requests are done."""
        faults = self._faults
        tokens = unit == "tokens"
        if num_done and num_done == (faults.die_after_tokens if tokens else faults.die_after_requests):
            self._die(f"the echo engine was told to die after {num_done} {unit}")
        if num_done and num_done == (faults.block_after_tokens if tokens else faults.block_after_requests):
            time.sleep(faults.block_seconds)  # noqa: ASYNC251 - to block the loop is the point
        if num_done and num_done == (faults.hang_after_tokens if tokens else faults.hang_after_requests):
            self._hang()
        if not self._going.is_set():
            await stream.wait(self._going.wait())

    def _hang(self) -> None:
        if self._has_hung:
            return
        self._has_hung = True
        self._going.clear()
        if self._faults.hang_seconds:
            asyncio.get_running_loop().call_later(self._faults.hang_seconds, self._going.set)

    def _die(self, reason: str) -> None:
        self._death = self._death or reason
        self._died.set()
        self._end_all(reason)

    def _end_all(self, reason: str) -> None:
        for stream in list(self._streams.values()):
            stream.error = EngineDead(reason)
            self._leave(stream)

    async def died(self) -> str:
        """See `Engine.died`; only a fault kills it."""
        await self._died.wait()
        assert self._death is not None
        return self._death

    async def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        stream = self._streams.get(request_id)
        if stream is not None:
            self._leave(stream)

    def stats(self) -> EngineStats:
        """A snapshot; each token and each chunk of a slow prefill is a step, and there are no KV blocks."""
        num_waiting = len(self._waiting)
        num_running = len(self._streams) - num_waiting
        if num_running and not any(stream.is_asked for stream in self._streams.values()):
            # It waits for its readers, where another engine would go on: that is no standstill.
            self._num_idle_steps += 1
        return EngineStats(
            num_running=num_running,
            num_waiting=num_waiting,
            num_prompt_tokens_total=self._num_prompt_tokens,
            num_generated_tokens_total=self._num_generated_tokens,
            num_steps_total=self._num_generated_tokens + self._num_prefill_steps + self._num_idle_steps,
        )

    async def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True
        await asyncio.sleep(self._faults.close_seconds)
        self._end_all("the echo engine was closed while the request was running")

    def _enter(self, request: GenerationRequest) -> _Stream:
        """Check the request and give it a slot, now or when one becomes free."""
        if self._closed or self._death is not None:
            raise EngineDead(self._death or "the echo engine has been closed")
        check_request(request, self.info)
        if request.request_id in self._streams:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        stream = _Stream(request.request_id)
        if len(self._streams) < self.info.max_num_seqs:
            stream.proceed.set()
        else:
            self._waiting.append(stream)
        self._streams[stream.request_id] = stream
        return stream

    def _leave(self, stream: _Stream) -> None:
        """End the stream, if that has not happened, and pass its slot on."""
        if stream.is_ended:
            return
        stream.is_ended = True
        stream.ended.set()
        del self._streams[stream.request_id]
        if stream in self._waiting:
            self._waiting.remove(stream)
        stream.proceed.set()
        while self._waiting and len(self._streams) - len(self._waiting) < self.info.max_num_seqs:
            self._waiting.popleft().proceed.set()


class _Stream:
    """One request in flight. `proceed` is set once it runs or has ended, `ended` in the second case only."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.proceed = asyncio.Event()
        self.ended = asyncio.Event()
        self.is_ended = False
        self.is_asked = False  # whether it runs and its consumer waits for it
        self.error: EngineDead | None = None

    async def wait(self, something: Coroutine[Any, Any, object]) -> None:
        """Until `something` has happened or the stream has ended."""
        tasks = [asyncio.create_task(something), asyncio.create_task(self.ended.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


def _timed(output: TokenOutput, clock: SequenceClock) -> TokenOutput:
    now = time.perf_counter()
    if output.token_ids:
        clock.first_token(now)
    return replace(output, timing=clock.timing(now))
