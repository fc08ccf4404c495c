"""The thread that runs the engine core: commands between steps, steps while there is work, else sleep."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from engines.base import EngineStats
from engines.cpu import kernels
from engines.cpu.core import EngineCore, StepOutput
from engines.errors import EngineError
from engines.grammar.constraint import Constraint
from engines.request import GenerationRequest

_logger = logging.getLogger(__name__)

_STATS_SECONDS = 0.1  # between two snapshots: of one for every step a decode would feel the time


@dataclass(frozen=True, slots=True)
class _Submission:
    """`submitted_at` is by `time.perf_counter()`: time spent among the commands is time in the queue."""

    request: GenerationRequest
    submitted_at: float
    constraint: Constraint | None


@dataclass(frozen=True, slots=True)
class _Abort:
    """`done` is resolved when the request, if it was there at all, holds nothing any more."""

    request_id: str
    done: Future[None] = field(default_factory=Future)


class EngineThread:
    """Owns `core` once started. All methods may be called from any thread.

    `deliver` gets each step's outputs; `died` is called once if the core raises: both on this thread.
    """

    def __init__(
        self,
        core: EngineCore,
        deliver: Callable[[Sequence[StepOutput]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._deliver = deliver
        self._died = died
        self._commands: deque[_Submission | _Abort] = deque()
        self._num_submitted = 0
        self._wakeup = threading.Condition()
        self._stopping = False
        self._stats = core.stats()
        self._stats_at = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="nybble-engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Hand a request over, with the beginning of its grammar; its outputs go to `deliver`."""
        with self._wakeup:
            self._num_submitted += 1
            self._commands.append(_Submission(request, time.perf_counter(), constraint))
            self._wakeup.notify()

    def abort(self, request_id: str) -> Future[None]:
        """Ask for the end of a request, between two steps."""
        command = _Abort(request_id)
        with self._wakeup:
            if self._stopping or not self._thread.is_alive():
                command.done.set_result(None)
                return command.done
            self._commands.append(command)
            self._wakeup.notify()
        return command.done

    def stats(self) -> EngineStats:
        """The core's last snapshot, counting requests handed over but not yet seen as waiting.

        Taken after steps in which a request came or ended, and else every tenth of a second.
        """
        with self._wakeup:
            stats = self._stats
            return replace(stats, num_waiting=stats.num_waiting + self._num_submitted)

    def stop(self) -> None:
        """End after the step in progress and join the thread."""
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        death: BaseException | None = None
        kernels.pin_calling_thread()
        try:
            while self._wait_for_work():
                has_commands = bool(self._commands)
                outputs = self._obey_commands()
                if self._core.has_work:
                    outputs.extend(self._core.step())
                if has_commands or self._stats_are_old() or any(map(_is_last, outputs)):
                    self._publish_stats()
                if outputs:
                    self._deliver(outputs)
        except BaseException as error:
            _logger.exception("the engine thread died")
            death = error
        self._let_go()
        if death is not None:
            self._died(death)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to stop."""
        with self._wakeup:
            while not (self._commands or self._core.has_work or self._stopping):
                self._wakeup.wait()
            return not self._stopping

    def _obey_commands(self) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        while True:
            with self._wakeup:
                if not self._commands:
                    return outputs
                command = self._commands.popleft()
            if isinstance(command, _Abort):
                aborted = self._core.abort(command.request_id)
                if aborted is not None:
                    outputs.append((command.request_id, aborted))
                self._publish_stats()
                command.done.set_result(None)
                continue
            try:
                self._core.add(command.request, command.submitted_at, command.constraint)
            except EngineError as error:
                outputs.append((command.request.request_id, error))
            self._publish_stats(num_taken=1)

    def _stats_are_old(self) -> bool:
        return time.perf_counter() - self._stats_at >= _STATS_SECONDS

    def _publish_stats(self, num_taken: int = 0) -> None:
        stats = self._core.stats()
        with self._wakeup:
            self._stats = stats
            self._num_submitted -= num_taken
        self._stats_at = time.perf_counter()

    def _let_go(self) -> None:
        """The thread ends: nothing runs any more, and nobody may wait for it."""
        with self._wakeup:
            self._stopping = True
            self._num_submitted = 0
            self._stats = replace(self._stats, num_running=0, num_waiting=0, num_blocks_used=0)
            commands, self._commands = self._commands, deque()
        for command in commands:
            if isinstance(command, _Abort):
                command.done.set_result(None)


def _is_last(step_output: StepOutput) -> bool:
    _, output = step_output
    return isinstance(output, EngineError) or output.finish_reason is not None
