"""Ending what may not want to end: our own tasks, and a runtime that hangs in its shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from engines.trtllm.blocking_call import call_blocking

_logger = logging.getLogger(__name__)
_MAX_CANCELLATIONS = 20
_CANCELLATION_SECONDS = 0.1


async def cancel_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait for their end, for a while.

    A task that was just being handed something may lose its cancellation (asyncio.wait_for does that before
    Python 3.12), so it is told more than once.
    """
    remaining = set(tasks)
    for _ in range(_MAX_CANCELLATIONS):
        for task in remaining:
            task.cancel()
        if not remaining:
            return
        _, remaining = await asyncio.wait(remaining, timeout=_CANCELLATION_SECONDS)


async def loaded_after_all(loading: asyncio.Future[Any], seconds: float) -> Any:
    """What a load that nobody waits for any more has led to; None when that failed or takes too long."""
    await asyncio.wait({loading}, timeout=seconds)
    if not loading.done():
        _logger.warning("TensorRT-LLM is still loading; it is left to the end of the process")
        return None
    if loading.cancelled() or loading.exception() is not None:
        return None
    return loading.result()


async def shut_down(llm: Any, seconds: float) -> None:
    """`llm.shutdown()`, left behind when it takes longer."""
    done, _ = await asyncio.wait({call_blocking(llm.shutdown, "trtllm-shutdown")}, timeout=seconds)
    if not done:
        _logger.warning("TensorRT-LLM did not shut down in %g s and is left behind", seconds)
        return
    error = done.pop().exception()
    if error is not None:
        _logger.warning("TensorRT-LLM did not shut down cleanly: %s: %s", type(error).__name__, error)
