"""What one stream has to send: at once while there is time, together when the pieces come fast."""

from __future__ import annotations

import asyncio

from starlette.types import Send

# A writing costs more than making what is written. Pieces that follow each other faster than this leave
# together, so none is later by more; tokens that come at reading speed never wait.
GAP_SECONDS = 0.005

# With this many pieces a second over all streams, writing alone would take a good part of a core.
BUSY_PIECES_PER_SECOND = 20_000.0
BUSY_GAP_SECONDS = 0.02
_WINDOW_SECONDS = 0.1

_MAX_PENDING_BYTES = 64 * 1024


class Pace:
    """The gap that all streams of a process keep, by how many pieces they sent lately."""

    def __init__(self) -> None:
        self.gap_seconds = GAP_SECONDS
        self._num_pieces = 0
        self._window_began = 0.0

    def count(self, num_pieces: int, now: float) -> None:
        """So many pieces have left at `now`, in seconds of a clock that never goes back."""
        self._num_pieces += num_pieces
        elapsed = now - self._window_began
        if elapsed >= _WINDOW_SECONDS:
            is_busy = self._num_pieces > BUSY_PIECES_PER_SECOND * elapsed
            self.gap_seconds = BUSY_GAP_SECONDS if is_busy else GAP_SECONDS
            self._num_pieces, self._window_began = 0, now


class Outbox:
    """Pieces of a response's body on their way to an ASGI `send`, in order. Used from one event loop.

    `put` takes a piece; when it returns True the caller has to await `flush`. `run` belongs into a task of
    its own: it sends what was left to wait. A reader who is behind gets the pieces in larger lots, and more
    than 64 KiB of them are not kept: then `put` asks for a flush, which waits for the reader.
    """

    def __init__(self, send: Send, pace: Pace) -> None:
        self._send = send
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []
        self._num_pending_bytes = 0
        self._not_before = 0.0
        self._is_waiting = False
        # Bare futures: an asyncio.Event and a Lock cost as much as all the rest of this.
        self._due: asyncio.Future[None] = self._loop.create_future()
        self._sending: asyncio.Future[None] | None = None
        self.last_sent = self._loop.time()

    def put(self, data: bytes) -> bool:
        """Take a piece; whether it has to be flushed now."""
        self._pending.append(data)
        self._num_pending_bytes += len(data)
        if self._is_waiting:
            return self._num_pending_bytes > _MAX_PENDING_BYTES
        now = self._loop.time()
        if now >= self._not_before:
            return True
        self._is_waiting = True
        self._loop.call_at(self._not_before, self._wake)
        return False

    async def flush(self, *, is_last: bool = False) -> None:
        """Send all pieces as one; the last lot ends the body."""
        while self._sending is not None:
            await asyncio.shield(self._sending)
        body = b"".join(self._pending)
        num_pieces = len(self._pending)
        self._pending.clear()
        self._num_pending_bytes = 0
        if not body and not is_last:
            return
        self.last_sent = now = self._loop.time()
        self._pace.count(num_pieces, now)
        self._not_before = now + self._pace.gap_seconds
        self._sending = self._loop.create_future()
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        finally:
            self._sending.set_result(None)
            self._sending = None

    async def run(self) -> None:
        """Flush whatever is due, for ever."""
        while True:
            await self._due
            self._due = self._loop.create_future()
            await self.flush()
            self._is_waiting = bool(self._pending)  # came while the reader was waited for
            if self._is_waiting:
                self._wake()

    def _wake(self) -> None:
        if not self._due.done():
            self._due.set_result(None)
