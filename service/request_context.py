"""The outermost layer: request ids, one log line a request, counting, the last resort on errors."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_responses import report, send_error
from service.metrics import ServiceMetrics

log = logging.getLogger("nybble.access")

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestContext:
    """ASGI middleware. A client's X-Request-Id is kept if it is short and plain; else one is made.

    The id goes into `scope["state"]["request_id"]`, the answer's headers and the log; bodies go nowhere.
    """

    def __init__(self, app: ASGIApp, *, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and account for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _ACCEPTABLE_ID.fullmatch(offered) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                report(error, self._metrics)
                raise
            await send_error(error, send_with_id, self._metrics)
        finally:
            self._account(scope, request_id, status, time.perf_counter() - started)

    def _account(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" else "any"
        self._metrics.http_requests.labels(route, method, str(status or 499)).inc()
        log.info(
            "%s %s %d",
            scope["method"],
            scope["path"].encode("unicode_escape").decode(),
            status or 499,
            extra={"request_id": request_id, "status": status or 499, "seconds": round(seconds, 6)},
        )
