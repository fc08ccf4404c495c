"""An end to waiting for an engine's next output, at no cost for requests without time limits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import TypeVar

from service.admission.ticket import Ticket
from service.admission.time_limits import Expired

T = TypeVar("T")


async def until_expired(ticket: Ticket, outputs: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The outputs, as long as the ticket's time limits allow.

    Raises Expired when a limit passes after the request's first token, else the limit's own error. Either way
    `outputs` has been ended by a cancellation, as if its consumer had gone.
    """
    loop = asyncio.get_running_loop()
    reason: Exception | None = None
    waiting: asyncio.Task[object] | None = None
    timer: asyncio.TimerHandle | None = None

    def watch() -> None:
        nonlocal reason, timer
        # Looked at anew each time: there are fewer limits once a token has come.
        limit = ticket.limits.next_limit(ticket.phase)
        if limit is None:
            return
        if limit[0] > 0:
            timer = loop.call_later(limit[0], watch)
            return
        reason = Expired() if ticket.has_produced else limit[1]
        if waiting is not None:
            waiting.cancel()

    watch()
    try:
        while True:
            if reason is not None:
                raise reason
            waiting = asyncio.current_task()
            try:
                output = await outputs.__anext__()
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if reason is None or not _was_ours(waiting):
                    raise
                raise reason from None
            finally:
                waiting = None
            yield output
    finally:
        if timer is not None:
            timer.cancel()


def _was_ours(task: asyncio.Task[object] | None) -> bool:
    """Whether nobody else has cancelled the task as well; Python 3.10 does not count."""
    if sys.version_info >= (3, 11) and task is not None:
        return task.uncancel() == 0
    return True
