"""The least an ASGI application can do to stream: the same bytes, one send for each event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class BareStream:
    """Answers every request with `num_chunks` times `chunk`, giving way to others before each.

    Without giving way one stream would run to its end before the next one begins, which no source of tokens
    allows.
    """

    def __init__(self, chunk: bytes, num_chunks: int) -> None:
        self._chunk = chunk
        self._num_chunks = num_chunks

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        for _ in range(self._num_chunks):
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": self._chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
