"""A closed-loop HTTP load: streamed completions of token ids, and when each of their chunks came.

A plain socket reader instead of a client library: on a machine of few cores the client's own work would
otherwise be charged to the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import EngineError

_LINE_LIMIT_BYTES = 1 << 20
_CONNECT_SECONDS = 10.0


class LoadFailed(EngineError):
    """The server refused a request of the benchmark, or broke off."""


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """One streamed answer: seconds on the process' monotonic clock, and its tokens as the server counts."""

    sent: float
    chunks: tuple[float, ...]
    ended: float
    num_tokens: int

    @property
    def time_to_first_token_seconds(self) -> float:
        """From sending the request to the first chunk with text."""
        return self.chunks[0] - self.sent


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes."""

    host: str
    port: int
    model: str
    api_key: str | None = None


async def run_load(
    target: Target, prompts: Sequence[Sequence[int]], max_tokens: int, num_streams: int
) -> list[StreamTimes]:
    """Send every prompt once, `num_streams` at a time. Raises LoadFailed."""
    waiting = iter(prompts)
    results: list[StreamTimes] = []

    async def worker() -> None:
        for prompt in waiting:
            results.append(await stream_completion(target, prompt, max_tokens))

    await asyncio.gather(*(worker() for _ in range(num_streams)))
    return results


async def stream_completion(target: Target, prompt: Sequence[int], max_tokens: int) -> StreamTimes:
    """One greedy completion of exactly `max_tokens` tokens. Raises LoadFailed."""
    request = _encode(target, prompt, max_tokens)
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(target.host, target.port, limit=_LINE_LIMIT_BYTES), _CONNECT_SECONDS
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise LoadFailed(f"no connection to {target.host}:{target.port}: {error}") from error
    try:
        sent = time.perf_counter()
        writer.write(request)
        return await _read_stream(reader, sent)
    finally:
        writer.close()


def _encode(target: Target, prompt: Sequence[int], max_tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": target.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    lines = [
        "POST /v1/completions HTTP/1.1",
        f"Host: {target.host}:{target.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if target.api_key is not None:
        lines.append(f"Authorization: Bearer {target.api_key}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _read_stream(reader: asyncio.StreamReader, sent: float) -> StreamTimes:
    status = await reader.readline()
    if b" 200 " not in status:
        answer = await reader.read(4096)
        raise LoadFailed(f"the server answered {status.decode(errors='replace').strip()}: {_excerpt(answer)}")
    moments: list[float] = []
    last = b""
    # Chunk sizes and headers are lines of their own; only data lines count.
    async for line in reader:
        if line.startswith(b"data: {"):
            moments.append(time.perf_counter())
            last = line
        elif line.startswith(b"data: [DONE]"):
            usage = json.loads(last[6:]).get("usage")
            if not usage or len(moments) < 2:
                raise LoadFailed(f"a stream ended early: {_excerpt(last)}")
            # The chunk of token counts is none of text.
            return StreamTimes(sent, tuple(moments[:-1]), time.perf_counter(), usage["completion_tokens"])
    raise LoadFailed(f"a stream broke off after {len(moments)} chunks: {_excerpt(last)}")


def _excerpt(answer: bytes) -> str:
    return " ".join(answer.decode(errors="replace").split())[-300:]
