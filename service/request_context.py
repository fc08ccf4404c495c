"""The outermost layer: request ids, one log line a request, counting, the last resort on errors."""

from __future__ import annotations

import logging
import re
import time
import uuid

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_responses import report, send_error
from service.log_context import log_fields
from service.metrics import ServiceMetrics
from service.request_account import RequestAccount
from service.tracing import RequestTrace, Tracing

log = logging.getLogger("nybble.access")
prompt_log = logging.getLogger("nybble.prompts")

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestContext:
    """ASGI middleware. A client's X-Request-Id is kept if it is short and plain; else one is made.

    The id goes into `scope["state"]["request_id"]`, the answer's headers and the log; the request's account,
    which the routes fill, into `scope["state"]["account"]`. Bodies go nowhere unless `log_prompts` is set.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServiceMetrics,
        tracing: Tracing | None = None,
        log_prompts: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and account for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = RequestAccount()
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _ACCEPTABLE_ID.fullmatch(offered) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, account=account)
        trace = None if self._tracing is None else self._tracing.begin(scope)
        fields = {"request_id": request_id}
        if trace is not None:
            fields["trace_id"] = trace.trace_id
        log_fields.set(fields)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])["X-Request-Id"] = request_id
            await send(message)

        self._metrics.http_in_progress.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                report(error, self._metrics)
                raise
            await send_error(error, send_with_id, self._metrics)
        finally:
            self._metrics.http_in_progress.dec()
            self._finish(scope, status or 499, account, trace)

    def _finish(self, scope: Scope, status: int, account: RequestAccount, trace: RequestTrace | None) -> None:
        seconds = time.perf_counter() - account.arrived
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" else "any"
        self._metrics.http_requests.labels(route, method, str(status)).inc()
        self._metrics.http_request_seconds.observe(route, seconds)
        fields: dict[str, object] = {"status": status, "seconds": round(seconds, 6)}
        caller = scope["state"].get("caller")
        if caller is not None:
            fields["key"] = caller.key.name
        if account.generation is not None:
            fields.update(_generation_fields(account))
        path = scope["path"].encode("unicode_escape").decode()
        log.info("%s %s %d", scope["method"], path, status, extra=fields)
        facts = account.generation
        if self._log_prompts and facts is not None:
            answers = {index: "".join(texts) for index, texts in (facts.answers or {}).items()}
            prompt_log.info("prompt %s answers %s", _json(facts.prompt), _json(list(answers.values())))
        if trace is not None:
            trace.end(scope, route, status, account)


def _generation_fields(account: RequestAccount) -> dict[str, object]:
    """What one line says about a generation; the parts that did not come are left out."""
    fields: dict[str, object] = {
        **account.seconds(),
        "num_prompt_tokens": account.num_prompt_tokens,
        "num_cached_tokens": account.num_cached_tokens,
        "num_generated_tokens": account.num_generated_tokens,
        "finish_reasons": account.finish_reasons,
    }
    if account.time_to_first_token_seconds is not None:
        fields["time_to_first_token_seconds"] = round(account.time_to_first_token_seconds, 6)
    if account.num_preemptions:
        fields["num_preemptions"] = account.num_preemptions
    return fields


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
