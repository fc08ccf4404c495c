"""Requests whose grammar is still being compiled: nobody else knows of them yet."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class PendingGrammars:
    """What each such request waits for, by its key. Used from one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: object) -> bool:
        return key in self._tasks

    async def wait(self, key: str, work: Coroutine[Any, Any, T], *, if_aborted: T) -> T:
        """The result of `work`, or `if_aborted` after `abort` or when the compiler was closed.

        Raises what `work` raises. Cancelling the caller cancels the work.
        """
        task = self._tasks[key] = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            del self._tasks[key]
        return if_aborted if task.cancelled() else task.result()

    def abort(self, key: str | None) -> bool:
        """End the wait of a request; False when there is none with this key."""
        task = self._tasks.get(key or "")
        if task is not None:
            task.cancel()
        return task is not None
