"""An event loop whose time does not pass: once every task waits, it jumps to the next timer.

Waiting costs nothing, and what happens depends on no machine's speed. For code that takes its time from the
loop, or from a clock that can be given: `now`.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NothingWillHappen(Exception):
    """Every task waits for another, and no timer is set."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 100 seconds. Files and threads that would wake it up are not waited for."""

    def __init__(self) -> None:
        self._now = 100.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Seconds, as timers see them."""
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingWillHappen
        self._jump(max(0.0, timeout))
        return super().select(0)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time. Raises NothingWillHappen instead of waiting for ever."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(_end_other_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_other_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let an asynchronous test run in virtual time."""

    @functools.wraps(test)
    def run_test(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return run_test


def now() -> float:
    """The running loop's time in seconds: a clock to give away."""
    return asyncio.get_running_loop().time()


async def until_quiet() -> None:
    """Returns when every other task waits: for a timer, or for another task."""
    await asyncio.sleep(2**-10)  # exact, so that times stay sums without a rest
