"""What the generating endpoints share around a request: its id, its headers, its form of delivery."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.disconnect import unless_disconnected
from service.protocol.wire import WireModel
from service.request_account import request_account
from service.sse import EventStream
from service.state import ServiceState

IGNORED_FIELDS_HEADER = "X-Nybble-Ignored-Fields"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_NAMES = 32


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that every chunk and every answer of one request begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    def as_json(self) -> dict[str, Any]:
        """A new dict to add choices and usage to."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def new_envelope(state: ServiceState, prefix: str, kind: str, model: str) -> Envelope:
    """An envelope with an id of its own; `prefix` is "chatcmpl" or "cmpl"."""
    return Envelope(f"{prefix}-{uuid.uuid4().hex}", kind, int(time.time()), model, state.system_fingerprint)


def warning_headers(body: WireModel) -> dict[str, str]:
    """A header that names the fields nobody looked at, if there are any."""
    names = [name for name in body.ignored_fields if _PLAIN_NAME.fullmatch(name)][:_MAX_NAMES]
    return {IGNORED_FIELDS_HEADER: ", ".join(names)} if names else {}


def stream_response(
    request: Request, state: ServiceState, body: WireModel, frames: AsyncGenerator[bytes, None]
) -> EventStream:
    """Deliver an answer as server-sent events; its headers tell what is known of its timing by then."""
    return EventStream(
        frames,
        metrics=state.metrics,
        cutoff=state.cutoff,
        pace=state.pace,
        heartbeat_seconds=state.settings.heartbeat_seconds,
        headers=warning_headers(body),
        late_headers=lambda: timing_headers(request),
    )


def timing_headers(request: Request) -> dict[str, str]:
    """`Server-Timing`, as far as the request has come."""
    value = request_account(request).server_timing()
    return {"Server-Timing": value} if value else {}


async def whole_response(
    request: Request, state: ServiceState, body: WireModel, work: Coroutine[Any, Any, dict[str, Any]]
) -> Response:
    """Deliver an answer in one piece; the work ends with the client's connection."""
    payload = await unless_disconnected(request.receive, work, state.metrics, state.cutoff)
    headers = {**warning_headers(body), **timing_headers(request)}
    return Response(orjson.dumps(payload), headers=headers, media_type="application/json")
