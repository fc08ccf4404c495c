"""One HTTP exchange over a connection of its own, timed, and if wanted broken off in the middle."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LINE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Exchange:
    """What became of a request. `status` None: no whole answer came, `problem` says why.

    `num_tokens` is what the server counted as generated; `is_whole` that a stream ended with its [DONE], or a
    plain answer with its last byte.
    """

    kind: str
    started: float
    seconds: float
    status: int | None
    headers: Mapping[str, str]
    num_tokens: int = 0
    is_whole: bool = False
    code: str | None = None
    problem: str | None = None
    was_cancelled: bool = False


async def exchange(
    port: int,
    kind: str,
    path: str,
    body: Mapping[str, Any],
    *,
    timeout_seconds: float,
    cancel_after_seconds: float | None = None,
) -> Exchange:
    """POST `body`; never raises for what the server does, or does not do in time."""
    started = time.monotonic()
    limit = timeout_seconds if cancel_after_seconds is None else cancel_after_seconds
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_LIMIT_BYTES)
        writer.write(_encoded(port, path, body))
        status, headers, answer = await asyncio.wait_for(_read_answer(reader), limit)
    except asyncio.TimeoutError:
        cancelled = cancel_after_seconds is not None
        problem = None if cancelled else f"no answer within {timeout_seconds:g} s"
        return Exchange(
            kind, started, time.monotonic() - started, None, {}, problem=problem, was_cancelled=cancelled
        )
    except (OSError, EOFError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        return Exchange(kind, started, time.monotonic() - started, None, {}, problem=problem)
    finally:
        if writer is not None:
            writer.close()
    num_tokens, is_whole, code = _judged(status, headers, answer)
    return Exchange(kind, started, time.monotonic() - started, status, headers, num_tokens, is_whole, code)


def _encoded(port: int, path: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    headers = {}
    for line in filter(None, head[1:]):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, await reader.read()


def _judged(status: int, headers: Mapping[str, str], answer: bytes) -> tuple[int, bool, str | None]:
    """Tokens generated, whether the answer is whole, and the code of an error."""
    if headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: ")]
        is_whole = bool(events) and events[-1].strip() == b"[DONE]"
        usage = next((u for event in reversed(events) if (u := _field(event, "usage"))), {})
        error = next((e for event in events if (e := _field(event, "error"))), {})
        return int(usage.get("completion_tokens", 0)), is_whole, error.get("code")
    try:
        document = json.loads(answer)
    except ValueError:
        return 0, False, None
    usage, error = document.get("usage") or {}, document.get("error") or {}
    is_whole = status == 200 or bool(error.get("message"))
    return int(usage.get("completion_tokens", 0)), is_whole, error.get("code")


def _field(event: bytes, name: str) -> dict[str, Any]:
    if b'"' + name.encode() + b'"' not in event:
        return {}
    try:
        return dict(json.loads(event).get(name) or {})
    except ValueError:
        return {}
