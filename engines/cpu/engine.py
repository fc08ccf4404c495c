"""The CPU engine behind the Engine interface: asyncio on one side, the engine thread on the other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from functools import partial

from engines.base import Engine, EngineInfo, EngineOptions, EngineStats, LoadProgress
from engines.cpu.constraints import Constraints
from engines.cpu.core import StepOutput
from engines.cpu.engine_thread import EngineThread
from engines.cpu.startup import load_core
from engines.errors import EngineDead, EngineUnavailable, InvalidRequest, StartFailed
from engines.grammar.constraint import Constraint
from engines.grammar.pending import PendingGrammars
from engines.load_tracker import LoadTracker
from engines.output_stream import OutputStream
from engines.request import FinishReason, GenerationRequest, TokenOutput
from engines.request_checks import check_request


class CpuEngine(Engine):
    """Runs an FP4 (or BF16/FP16) checkpoint on this machine's cores with our own kernels."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._load_tracker = LoadTracker()
        self._info: EngineInfo | None = None
        self._thread: EngineThread | None = None
        self._constraints: Constraints | None = None  # made for the first grammar
        self._pending = PendingGrammars()  # by key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, OutputStream] = {}  # by key, see generate
        self._keys: dict[str, str] = {}  # request id -> key, of the requests in flight
        self._serial = itertools.count()
        self._death: str | None = None
        self._died = asyncio.Event()
        self._last_stats = EngineStats()

    async def start(self) -> None:
        """See Engine.start. Loads in a worker thread, so the event loop stays free."""
        if self._thread is not None:
            raise StartFailed("the engine has been started already")
        self._loop = asyncio.get_running_loop()
        try:
            core = await asyncio.to_thread(load_core, self._options, self._load_tracker)
        except MemoryError as error:
            raise StartFailed(f"out of memory while loading {self._options.checkpoint}") from error
        finally:
            self._load_tracker.end()
        self._info = core.info
        self._thread = EngineThread(core, self._from_thread, self._thread_died)
        self._thread.start()

    def load_progress(self) -> LoadProgress | None:
        """See Engine.load_progress. Bytes are those of the checkpoint's linear layers."""
        return self._load_tracker.progress()

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine; EngineUnavailable before `start` has returned."""
        if self._info is None:
            raise EngineUnavailable("the CPU engine has not been started; await start() first")
        return self._info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """See Engine.generate."""
        thread = self._alive_thread()
        check_request(request, self.info)
        if request.request_id in self._keys:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        # Below this line a request has a key of its own: an id may be used again while the engine thread
        # still has to hear that its first bearer was aborted.
        key = f"{request.request_id}#{next(self._serial)}"
        self._keys[request.request_id] = key
        stream = self._streams[key] = OutputStream()
        try:
            constraint = None
            if request.sampling.grammar is not None:
                constraint = await self._constrain(key, request)
            if constraint is None and request.sampling.grammar is not None:
                stream.put(TokenOutput((), finish_reason=FinishReason.ABORT))
            else:
                thread.submit(replace(request, request_id=key), constraint)
            while not stream.is_over:
                yield await stream.get()
        finally:
            del self._keys[request.request_id], self._streams[key]
            if not stream.is_over:
                thread.abort(key)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        key = self._keys.get(request_id)
        if not self._pending.abort(key) and key is not None and self._thread is not None:
            await asyncio.wrap_future(self._thread.abort(key))

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        stats = self._thread.stats() if self._thread is not None else self._last_stats
        if self._constraints is None:
            return stats
        return replace(
            stats,
            num_waiting=stats.num_waiting + len(self._pending),
            num_grammar_compiles_total=self._constraints.num_compiles_total,
            grammar_compile_seconds_total=self._constraints.compile_seconds_total,
        )

    async def died(self) -> str:
        """See Engine.died. The engine thread may fall at any step, and between two of them."""
        await self._died.wait()
        assert self._death is not None
        return self._death

    async def close(self) -> None:
        """See Engine.close."""
        if self._death is None:
            self._death = "the engine has been closed"
        if self._constraints is not None:
            self._constraints.close()
        thread = self._thread
        if thread is not None:
            await asyncio.to_thread(thread.stop)
            self._last_stats = thread.stats()
            self._thread = None  # and with it the model's memory
        self._fail_streams()

    async def _constrain(self, key: str, request: GenerationRequest) -> Constraint | None:
        """The beginning of the request's grammar, compiled; None when the request was aborted meanwhile."""
        if self._constraints is None:
            assert self._options.checkpoint is not None
            self._constraints = Constraints(self._options.checkpoint, self.info)
        try:
            constraint = await self._pending.wait(key, self._constraints.begin(request), if_aborted=None)
        except EngineUnavailable:
            self._alive_thread()
            raise
        self._alive_thread()  # it may have died or been closed in the time
        return constraint

    def _alive_thread(self) -> EngineThread:
        if self._death is not None:
            raise EngineDead(self._death)
        if self._thread is None:
            raise EngineDead("the engine has not been started")
        return self._thread

    # -- called on the engine thread ----------------------------------------------------------------------

    def _from_thread(self, outputs: Sequence[StepOutput]) -> None:
        """One wake-up of the event loop for a step, however many sequences it served."""
        self._call_in_loop(partial(self._dispatch, outputs))

    def _thread_died(self, error: BaseException) -> None:
        self._death = f"the CPU engine stopped after an internal error ({type(error).__name__}: {error})"
        self._call_in_loop(self._mourn)

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(callback)

    # -- called in the event loop -------------------------------------------------------------------------

    def _dispatch(self, outputs: Sequence[StepOutput]) -> None:
        for key, output in outputs:
            stream = self._streams.get(key)
            if stream is not None:
                stream.put(output)

    def _mourn(self) -> None:
        self._died.set()
        self._fail_streams()

    def _fail_streams(self) -> None:
        assert self._death is not None
        for stream in self._streams.values():
            stream.put(EngineDead(self._death))
