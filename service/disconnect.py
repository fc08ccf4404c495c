"""A client that hangs up ends the work done for it, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from service.cutoff import Cutoff
from service.errors import ClientDisconnected
from service.metrics import ServiceMetrics

T = TypeVar("T")


async def client_gone(receive: Receive) -> None:
    """Return once the client has disconnected. The request's body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up; their outcome is of no interest any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def unless_disconnected(
    receive: Receive, work: Coroutine[Any, Any, T], metrics: ServiceMetrics, cutoff: Cutoff
) -> T:
    """The result of `work`, which is cancelled if the client goes away first, or at the cut-off.

    Raises ClientDisconnected in the first case (nobody reads the answer then), the cut-off's error in the
    other.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(client_gone(receive))
    cut = cutoff.waiter()
    try:
        await asyncio.wait((working, watching, cut), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if cut.done() and cutoff.error is not None:
            raise cutoff.error
        metrics.cancelled.inc()
        raise ClientDisconnected("The client closed the connection before the answer was complete.")
    finally:
        cutoff.release(cut)
        await stop_tasks(working, watching)
