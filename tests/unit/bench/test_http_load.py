"""The load reads streams as a server sends them, and says what went wrong when one does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from engines.bench.http_load import LoadFailed, StreamTimes, Target, run_load, stream_completion

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def text_chunk(text: str) -> bytes:
    return chunk(json.dumps({"choices": [{"text": text}], "usage": None}))


USAGE = chunk(json.dumps({"choices": [], "usage": {"completion_tokens": 3}}))
DONE = chunk("[DONE]") + b"0\r\n\r\n"


async def against(
    answer: Answer, act: Callable[[Target], Awaitable[list[StreamTimes]]]
) -> tuple[list[StreamTimes], list[bytes]]:
    """What `act` gets from a server that gives every request `answer`, and the requests."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        requests.append(head + await reader.readexactly(length))
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await act(Target("127.0.0.1", port, "m", "secret")), requests


async def one(target: Target) -> list[StreamTimes]:
    return [await stream_completion(target, [5, 6], 3)]


async def test_a_stream_cut_anywhere_is_read_whole() -> None:
    whole = HEAD + text_chunk("a") + text_chunk("b") + USAGE + DONE

    async def byte_by_byte(writer: asyncio.StreamWriter) -> None:
        for index in range(len(whole)):
            writer.write(whole[index : index + 1])
            await writer.drain()

    (times,), (request,) = await against(byte_by_byte, one)
    assert (len(times.chunks), times.num_tokens) == (2, 3)
    assert 0 < times.time_to_first_token_seconds <= times.ended - times.sent
    assert b"Authorization: Bearer secret\r\n" in request
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"], body["stream"]) == ([5, 6], 3, True, True)


async def test_no_more_streams_at_a_time_than_asked_for() -> None:
    running = most = 0

    async def counted(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        writer.write(HEAD + text_chunk("a") + text_chunk("b") + USAGE + DONE)
        await writer.drain()
        running -= 1

    times, requests = await against(counted, lambda target: run_load(target, [[1]] * 7, 3, 2))
    assert (len(times), len(requests)) == (7, 7)
    assert most <= 2


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}", "429"),
        (HEAD + text_chunk("a"), "broke off after 1"),
        (HEAD + text_chunk("a") + text_chunk("b") + DONE, "ended early"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(sent: bytes, message: str) -> None:
    async def cut_short(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    with pytest.raises(LoadFailed, match=message):
        await against(cut_short, one)


async def test_nobody_listens() -> None:
    with pytest.raises(LoadFailed, match="no connection"):
        await stream_completion(Target("127.0.0.1", 1, "m"), [1], 2)
