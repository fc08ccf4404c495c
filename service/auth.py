"""Every path needs an API key with the path's scope, known path or not, but for an explicit public list."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_responses import send_error
from service.errors import InvalidApiKey, MissingScope, ServiceError
from service.keys import entry
from service.keys.ring import Caller, KeyRing
from service.metrics import ServiceMetrics

PUBLIC_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup"})

_ADMIN_PREFIX = "/admin"
_METRICS_PATH = "/metrics"


def scope_of(path: str) -> entry.Scope:
    """What a key must be good for; what nobody thought of needs the scope of the API itself."""
    if path == _ADMIN_PREFIX or path.startswith(_ADMIN_PREFIX + "/"):
        return entry.Scope.ADMIN
    return entry.Scope.METRICS if path == _METRICS_PATH else entry.Scope.INFERENCE


def identify(keys: KeyRing, headers: Headers, path: str) -> Caller | None:
    """Who asks; None where no keys are configured. Raises InvalidApiKey and MissingScope.

    Without keys nobody can show to be an administrator: those paths are closed then.
    """
    scope = scope_of(path)
    if not keys.required:
        if scope is entry.Scope.ADMIN:
            raise MissingScope(
                "This path needs an API key with the scope admin; none is configured (--api-key-file)."
            )
        return None
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise InvalidApiKey("No API key was given; send it as `Authorization: Bearer KEY`.")
    return keys.identify(key.strip().encode("latin-1"), scope)


class RequireApiKey:
    """ASGI middleware: 401 or 403 for any path outside PUBLIC_PATHS without a key that is good for it.

    The caller goes into `scope["state"]["caller"]`; answers tell where the key's rate limits stand.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, metrics: ServiceMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = identify(self._keys, Headers(scope=scope), scope["path"])
        except ServiceError as error:
            await send_error(error, send, self._metrics)
            return
        if caller is None:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Copied: a stream's headers belong to its response object.
                headers = MutableHeaders(raw=list(message["headers"]))
                for name, value in caller.usage.headers().items():
                    headers[name] = value
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_with_limits)
