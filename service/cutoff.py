"""The moment from which requests in flight are not waited for any more: each is answered with an error."""

from __future__ import annotations

import asyncio

# What a client that does not read gets to take its error.
LAST_WORD_SECONDS = 2.0


class Cutoff:
    """One for the process. Used from the event loop that serves requests."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def end_all(self, error: Exception) -> None:
        """Let every request in flight, and every later one, end with `error`."""
        if self.error is None:
            self.error = error
        for waiter in tuple(self._waiters):
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self) -> asyncio.Future[None]:
        """Done when the moment has come. Hand it back with `release`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.error is not None:
            waiter.set_result(None)
        self._waiters.add(waiter)
        return waiter

    def release(self, waiter: asyncio.Future[None]) -> None:
        """Its request is over."""
        self._waiters.discard(waiter)
