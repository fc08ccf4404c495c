"""API keys. Once a key is configured every path needs one, known or not, but for an explicit public list."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.error_responses import send_error
from service.errors import InvalidApiKey
from service.metrics import ServiceMetrics

PUBLIC_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup"})


class KeyFileError(Exception):
    """The key file cannot be read or holds no key."""


class ApiKeys:
    """The keys, kept as SHA-256 digests only. Without any, everybody is let in."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    @classmethod
    def from_file(cls, path: Path) -> ApiKeys:
        """Read one key a line; empty lines and lines that begin with # are skipped. Raises KeyFileError."""
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read the API key file {path}: {error}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise KeyFileError(
                f"the API key file {path} holds no key; write one key a line or drop the option"
            )
        return cls(keys)

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._digests)

    def accepts(self, key: bytes) -> bool:
        """Whether `key` is one of ours. Takes the same time whichever key it is, or none."""
        presented = _digest(key)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(presented, digest)
        return found


class RequireApiKey:
    """ASGI middleware: 401 for any path outside PUBLIC_PATHS without a valid `Authorization: Bearer` key."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, metrics: ServiceMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401."""
        if scope["type"] != "http" or not self._keys.required or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
        except InvalidApiKey as error:
            await send_error(error, send, self._metrics)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKey("No API key was given; send it as `Authorization: Bearer KEY`.")
        if not self._keys.accepts(key.strip().encode("latin-1")):
            raise InvalidApiKey("The API key is not valid here.")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
