"""Large request bodies are parsed beside the event loop, so that nobody else waits for them.

A thread alone would not do: the parser written in C keeps the interpreter's lock from the first byte to the
last, three quarters of a second for four million numbers. Bodies of many values therefore go through the
standard library's parser in Python: several times slower, but it lets others in every few milliseconds.
"""

from __future__ import annotations

import json
import json.decoder
import json.scanner
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.state import service_state

LARGE_BYTES = 64 * 1024

# So many commas make the parser in C hold the lock for some 5 ms.
_MANY_VALUES = 20_000


class _PatientDecoder(json.JSONDecoder):
    """Objects and arrays in Python, strings in C."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = json.decoder.JSONObject  # type: ignore[attr-defined]
        self.parse_array = json.decoder.JSONArray  # type: ignore[attr-defined]
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def parse_patiently(body: bytes) -> Any:
    """What `json.loads` gives; raises what it raises."""
    if body.count(b",") < _MANY_VALUES:
        return json.loads(body)
    return _PatientDecoder().decode(body.decode(json.detect_encoding(body), "surrogatepass"))


class _PatientRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BYTES:
            return json.loads(body)
        return await service_state(self).in_body_thread(lambda: parse_patiently(body))


class PatientRoute(APIRoute):
    """A route that takes large JSON bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request whose `json` does not block."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_PatientRequest(request.scope, request.receive))

        return handle
