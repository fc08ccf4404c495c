"""Server-sent events straight over ASGI: frames, heartbeat, errors in the middle, a watch on the client."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.cutoff import LAST_WORD_SECONDS, Cutoff
from service.disconnect import client_gone, stop_tasks
from service.error_responses import error_response, report
from service.metrics import ServiceMetrics
from service.outbox import Outbox, Pace

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event. orjson writes no newline, so the payload is one `data:` line."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


class FrameTemplate:
    """One event of which nothing but a text changes: all but the text is serialised once."""

    def __init__(self, payload_of: Callable[[str], Mapping[str, Any]]) -> None:
        # Nothing a client chooses can contain it.
        marker = uuid.uuid4().hex
        self._head, _, self._tail = frame(payload_of(marker)).partition(orjson.dumps(marker))

    def fill(self, text: str) -> bytes:
        """The event with this text, the same as `frame` would make it."""
        return self._head + orjson.dumps(text) + self._tail


class EventStream(Response):
    """Sends `frames` as they come, then [DONE].

    The status line waits for the first frame, so that a request refused by the engine still gets its own
    status; after `heartbeat_seconds` without a frame it is sent anyway, followed by a comment, and the same
    silence later in the stream is filled with further comments. An error after that is sent as an event.
    When the client goes away the generator is closed, within the time the event loop takes to notice; at the
    cut-off too, and the cut-off's error is the last event. `late_headers` is asked when the headers are sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        metrics: ServiceMetrics,
        cutoff: Cutoff,
        pace: Pace,
        heartbeat_seconds: float,
        headers: Mapping[str, str],
        late_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._frames = frames
        self._metrics = metrics
        self._cutoff = cutoff
        self._pace = pace
        self._heartbeat_seconds = heartbeat_seconds
        self._late_headers = late_headers
        self._started = False
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the frames or the client end."""
        outbox = Outbox(send, self._pace)
        producing = asyncio.create_task(self._produce(outbox, scope, receive, send))
        watching = asyncio.create_task(client_gone(receive))
        sending = asyncio.create_task(outbox.run())
        beating = asyncio.create_task(self._beat(outbox, send))
        cut = self._cutoff.waiter()
        try:
            await asyncio.wait((producing, watching, cut), return_when=asyncio.FIRST_COMPLETED)
            if producing.done():
                producing.result()
            elif watching.done() or self._cutoff.error is None:
                self._metrics.cancelled.inc()
            else:
                await stop_tasks(producing, sending, beating)
                # A client that reads nothing learns nothing.
                with contextlib.suppress(asyncio.TimeoutError):
                    last_word = self._fail(self._cutoff.error, outbox, scope, receive, send)
                    await asyncio.wait_for(last_word, LAST_WORD_SECONDS)
        finally:
            self._cutoff.release(cut)
            await stop_tasks(producing, watching, sending, beating)

    async def _produce(self, outbox: Outbox, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._frames) as frames:
                async for data in frames:
                    if not self._started:
                        await self._start(send)
                    if outbox.put(data):
                        await outbox.flush()
        except Exception as error:
            await self._fail(error, outbox, scope, receive, send)
            return
        if not self._started:
            await self._start(send)
        outbox.put(DONE)
        await outbox.flush(is_last=True)

    async def _fail(
        self, error: Exception, outbox: Outbox, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not self._started:
            self._started = True
            await error_response(error, self._metrics)(scope, receive, send)
            return
        outbox.put(frame(report(error, self._metrics).body) + DONE)
        await outbox.flush(is_last=True)

    async def _start(self, send: Send) -> None:
        self._started = True
        for name, value in self._late_headers().items():
            self.headers[name] = value
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _beat(self, outbox: Outbox, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(outbox.last_sent + self._heartbeat_seconds - loop.time())
            if loop.time() - outbox.last_sent < self._heartbeat_seconds:
                continue
            if not self._started:
                await self._start(send)
            outbox.put(HEARTBEAT)
            await outbox.flush()
