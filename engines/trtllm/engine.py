"""TensorRT-LLM behind the Engine interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from engines.base import Engine, EngineInfo, EngineOptions, EngineStats, LoadProgress
from engines.errors import EngineDead, EngineError, EngineUnavailable, InvalidRequest, StartFailed
from engines.grammar.compiler import GrammarCompiler
from engines.grammar.pending import PendingGrammars
from engines.load_tracker import LoadTracker
from engines.output_stream import OutputStream
from engines.request import FinishReason, GenerationRequest, Grammar, TokenOutput
from engines.request_checks import check_request
from engines.trtllm.blocking_call import call_blocking
from engines.trtllm.ending import cancel_all, loaded_after_all, shut_down
from engines.trtllm.generation import Generation
from engines.trtllm.guided_decoding import grammar_checker
from engines.trtllm.iteration_stats import IterationStats
from engines.trtllm.rehearsal import Rehearsal
from engines.trtllm.request_queue import Call, RequestQueue
from engines.trtllm.sampling import check_support, plan_sampling
from engines.trtllm.startup import Prepared, describe, prepare, wait_for_load
from engines.trtllm.watchdog import Watchdog

_logger = logging.getLogger(__name__)
_ABORT_SECONDS = 10.0


class TrtLlmEngine(Engine):
    """Runs NVFP4 checkpoints on NVIDIA GPUs through TensorRT-LLM's PyTorch backend, or engines that
    trtllm-build has made, for the releases that load those.

    At most `max_num_seqs` requests are handed to the runtime; the others wait here, by priority and arrival,
    which gives every release priorities, exact figures and requests that can be aborted before they cost
    anything. `watch_seconds` is how often the runtime is looked after, `shutdown_seconds` how long it gets
    to end.
    """

    def __init__(
        self, options: EngineOptions, *, watch_seconds: float = 1.0, shutdown_seconds: float = 30.0
    ) -> None:
        self._options = options
        self._watch_seconds = watch_seconds
        self._shutdown_seconds = shutdown_seconds
        self._prepared: Prepared | None = None
        self._info: EngineInfo | None = None
        self._load_tracker = LoadTracker()
        self._loading: asyncio.Future[Any] | None = None
        self._llm: Any = None
        self._queue = RequestQueue(options.max_num_seqs, self._run)
        self._watchdog = Watchdog(options.stall_timeout_seconds)
        self._iterations = IterationStats(self._watchdog.progress)
        self._tasks: set[asyncio.Task[None]] = set()
        self._grammars: GrammarCompiler | None = None  # made for the first grammar
        self._pending = PendingGrammars()  # by request id
        self._death: str | None = None
        self._has_died = asyncio.Event()
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_generated_tokens = 0
        self._num_outputs = 0

    async def start(self) -> None:
        """See Engine.start. Loads on a thread; then a warm-up, and the build's canaries if there are any."""
        if self._loading is not None:
            raise StartFailed("the engine has been started already")
        try:
            prepared = await self._load()
            rehearsal = Rehearsal(prepared, self._llm, self._options.stall_timeout_seconds)
            self._load_tracker.begin("warming up")
            await rehearsal.warm_up()
            self._load_tracker.begin("checking canary prompts")
            await rehearsal.check_canaries()
        finally:
            self._load_tracker.end()
        self._queue.capacity = int(prepared.arguments["max_batch_size"])
        self._info = describe(prepared, self._iterations.num_blocks_total)
        self._spawn(self._watch())

    def load_progress(self) -> LoadProgress | None:
        """See Engine.load_progress. How far the runtime has come within a phase it does not tell."""
        return self._load_tracker.progress()

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine; EngineUnavailable before `start` has returned."""
        if self._info is None:
            raise EngineUnavailable("the TensorRT-LLM engine has not been started; await start() first")
        return self._info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """See Engine.generate."""
        if self._death is not None:
            raise EngineDead(self._death)
        info = self.info
        assert self._prepared is not None
        check_support(request.sampling, self._prepared.runtime.features)
        check_request(request, info)
        plan = plan_sampling(
            request, self._prepared.facts, self._prepared.limits, self._prepared.runtime.features
        )
        if self._queue.knows(request.request_id) or request.request_id in self._pending:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use", param="request_id")
        if request.sampling.grammar is not None:
            is_sound = await self._check_grammar(request.request_id, request.sampling.grammar)
            if not is_sound:
                yield TokenOutput((), finish_reason=FinishReason.ABORT)
                return
        call = Call(request, Generation(self._prepared.runtime, self._llm, plan), OutputStream())
        try:
            self._queue.enter(call)
            while not call.stream.is_over:
                yield await call.stream.get()
        finally:
            self._queue.forget(call)
            if not call.stream.is_over:
                self._queue.cancel(call)

    async def abort(self, request_id: str) -> None:
        """See Engine.abort."""
        call = self._queue.find(request_id)
        if self._pending.abort(request_id) or call is None:
            return
        self._queue.cancel(call)
        try:
            await asyncio.wait_for(call.is_over.wait(), _ABORT_SECONDS)
        except asyncio.TimeoutError:
            # Whether it still works is for the watchdog to say.
            _logger.warning(
                "TensorRT-LLM has not confirmed the end of request %s in %g s", request_id, _ABORT_SECONDS
            )

    def stats(self) -> EngineStats:
        """See Engine.stats. Blocks in use are the runtime's figure, as of its last step."""
        if self._info is None:
            return EngineStats()
        num_blocks = self._info.num_blocks
        num_running = self._queue.num_running
        return EngineStats(
            num_running=num_running,
            num_waiting=self._queue.num_waiting + len(self._pending),
            num_blocks_used=min(self._iterations.num_blocks_used, num_blocks) if num_running else 0,
            num_blocks_total=num_blocks,
            num_prompt_tokens_total=self._num_prompt_tokens,
            num_cached_prompt_tokens_total=self._num_cached_tokens,
            num_generated_tokens_total=self._num_generated_tokens,
            num_grammar_compiles_total=0 if self._grammars is None else self._grammars.num_compiles_total,
            grammar_compile_seconds_total=(
                0.0 if self._grammars is None else self._grammars.compile_seconds_total
            ),
            num_steps_total=self._iterations.num_steps
            if self._iterations.is_available
            else self._num_outputs,
        )

    async def _check_grammar(self, request_id: str, grammar: Grammar) -> bool:
        """Whether the request may go on: False when it was aborted meanwhile. Raises as `check` does."""
        if self._grammars is None:
            assert self._options.checkpoint is not None
            self._grammars = grammar_checker(self._options.checkpoint, self.info)
        try:
            is_sound = await self._pending.wait(request_id, self._grammars.check(grammar), if_aborted=False)
        except EngineUnavailable:
            is_sound = False
            if self._death is None:
                raise
        if self._death is not None:
            raise EngineDead(self._death)
        return is_sound

    async def died(self) -> str:
        """See Engine.died."""
        await self._has_died.wait()
        assert self._death is not None
        return self._death

    async def close(self) -> None:
        """See Engine.close. Waits for `shutdown_seconds` at most, then leaves the runtime behind."""
        if self._death is None:
            self._death = "the TensorRT-LLM engine has been closed"
        if self._grammars is not None:
            self._grammars.close()
        await cancel_all((*self._tasks, *self._queue.fail_all(EngineDead(self._death))))
        loading, self._loading = self._loading, None
        llm, self._llm = self._llm, None
        if loading is not None and llm is None:
            # Cancelled while it loaded: it has to be shut down as soon as it is there.
            llm = await loaded_after_all(loading, self._shutdown_seconds)
        if hasattr(llm, "shutdown"):
            await shut_down(llm, self._shutdown_seconds)

    # -- starting -----------------------------------------------------------------------------------------

    async def _load(self) -> Prepared:
        self._load_tracker.begin("checking machine, files and memory; importing TensorRT-LLM")
        self._loading = call_blocking(lambda: prepare(self._options), "trtllm-prepare")
        prepared: Prepared = await asyncio.shield(self._loading)
        self._load_tracker.begin("loading the model into TensorRT-LLM")
        self._loading = call_blocking(lambda: prepared.model_class(**prepared.arguments), "trtllm-load")
        self._llm = await wait_for_load(self._loading, self._options.checkpoint)
        self._prepared = prepared
        self._spawn(self._iterations.read_forever(self._llm))
        return prepared

    # -- running ------------------------------------------------------------------------------------------

    async def _run(self, call: Call) -> None:
        """Move one request's outputs from the runtime to its stream."""
        if self._queue.num_running == 1:
            self._watchdog.progress()
        self._num_prompt_tokens += len(call.request.prompt_token_ids)
        try:
            async with aclosing(call.generation.outputs()) as outputs:
                async for output in outputs:
                    self._watchdog.progress()
                    self._num_outputs += 1
                    self._num_generated_tokens += len(output.token_ids)
                    if not call.has_output:
                        self._num_cached_tokens += output.num_cached_tokens
                    call.has_output = True
                    timed = call.timed(output)
                    if timed.finish_reason is not None:
                        call.last_output = timed
                        return
                    call.stream.put(timed)
        except EngineError as error:
            call.stream.put(error)
        except Exception as error:
            _logger.error("TensorRT-LLM has failed", exc_info=error)
            text = " ".join(str(error).split())[:300]
            self._die(f"TensorRT-LLM has stopped after an error ({type(error).__name__}: {text})")

    async def _watch(self) -> None:
        """Look after the runtime until it, or the engine, is at its end."""
        check_health = getattr(self._llm, "_check_health", None)
        while self._death is None:
            await asyncio.sleep(self._watch_seconds)
            reason = self._watchdog.verdict(
                num_running=self._queue.num_running,
                num_unread_prompt_tokens=self._queue.num_unread_prompt_tokens(),
            )
            if reason is not None:
                self._die(f"TensorRT-LLM has stopped: {reason}")
            elif check_health is not None and not check_health():
                self._die(
                    "TensorRT-LLM has stopped: it reports itself unhealthy (a worker process has ended)"
                )

    def _die(self, reason: str) -> None:
        if self._death is not None:
            return
        self._death = reason
        _logger.error("%s", reason)
        self._tasks.update(self._queue.fail_all(EngineDead(reason)))  # for `close` to end
        self._has_died.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
