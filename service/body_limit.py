"""A bound on the size of request bodies, whether or not the client announces the size."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_responses import send_error
from service.errors import BodyTooLarge
from service.metrics import ServiceMetrics


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to exceed `max_bytes`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, metrics: ServiceMetrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        explanation = f"The body exceeds {self._max_bytes} bytes, the most this server takes."
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await send_error(BodyTooLarge(explanation), send, self._metrics)
            return
        num_received_bytes = 0

        async def counting_receive() -> Message:
            nonlocal num_received_bytes
            message = await receive()
            if message["type"] == "http.request":
                num_received_bytes += len(message.get("body", b""))
                if num_received_bytes > self._max_bytes:
                    # FastAPI lets only this class through from the place where it reads the body.
                    raise HTTPException(413, explanation)
            return message

        await self._app(scope, counting_receive, send)
