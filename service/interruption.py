"""Functions that are interrupted in the thread that calls them when they take too long.

A thread of its own for each call would be simpler to abandon. But each start and each join of a thread waits
for the interpreter's lock, up to 5 ms a time while an event loop is busy with streams, and what waits for the
lock makes everything slower that has it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The function was interrupted."""


class _Interruption(BaseException):
    """Raised in the function, wherever it is; no `except Exception` keeps it."""


@dataclass(eq=False, slots=True)
class _Call:
    thread_id: int
    deadline: float
    is_interrupted: bool = False


class Interrupter:
    """`run` may be called from several threads at once, each for itself.

    A function is interrupted between two bytecodes: a loop at once, a single built-in operation when it is
    done. One thread watches over all calls; it exists while there are some, and a while longer.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._calls: dict[_Call, None] = {}  # in the order of their deadlines
        self._is_watched = False
        self._has_begun = False  # one, since the watching thread last looked

    def run(self, function: Callable[[], T]) -> T:
        """What the function returns. Raises what it raises, and TookTooLong."""
        call = _Call(threading.get_ident(), 0.0)
        try:
            try:
                self._begin(call)
                return function()
            finally:
                self._end(call)
        except _Interruption:
            self._end(call)  # it may have struck in there
            raise TookTooLong(f"interrupted after {self.seconds:g} seconds") from None

    def _begin(self, call: _Call) -> None:
        with self._lock:
            call.deadline = time.monotonic() + self.seconds
            self._calls[call] = None
            self._has_begun = True
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="nybble-interrupter", daemon=True).start()

    def _end(self, call: _Call) -> None:
        """After this nothing is raised in the thread any more on behalf of the call."""
        with self._lock:
            self._calls.pop(call, None)
        if call.is_interrupted:
            _raise_in(call.thread_id, None)

    def _watch(self) -> None:
        while (pause := self._look()) is not None:
            time.sleep(pause)

    def _look(self) -> float | None:
        """Interrupt what is due; seconds until something else may be, None when the watch is over."""
        with self._lock:
            now = time.monotonic()
            for call in [call for call in self._calls if call.deadline <= now]:
                del self._calls[call]
                call.is_interrupted = True
                _raise_in(call.thread_id, _Interruption)
            self._is_watched = bool(self._calls) or self._has_begun
            self._has_begun = False
            if not self._is_watched:
                return None
            first = next(iter(self._calls), None)
            # A call that begins meanwhile is not due before the whole time has passed.
            return self.seconds if first is None else first.deadline - now


def _raise_in(thread_id: int, exception: type[BaseException] | None) -> None:
    """Python's own way to raise in another thread; None takes back what has not been raised yet."""
    raised = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), raised)
