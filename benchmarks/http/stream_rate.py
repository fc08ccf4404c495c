"""Streamed events a second for each core of the server, beside a bare ASGI application; alternating.

    python -m benchmarks.http.stream_rate CHECKPOINT --streams 64 --tokens 512 --runs 5 --output FILE.json

CHECKPOINT needs a tokenizer and a config only: the echo engine answers. Both applications run under the
same uvicorn settings in a process of their own; the rate is events divided by the CPU time, user and
system, that the server's process took, so that the client and whatever else the machine does are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn

from benchmarks import record
from benchmarks.cpu_time import cpu_seconds
from benchmarks.http.bare_app import BareStream

# What one chat chunk looks like on the wire; the bare application sends this.
_TYPICAL_CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1767225600,"model":"tiny","system_fingerprint":"nybble_0123456789ab","choices":[{"index":0,'
    b'"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """How many streams at a time, and how many tokens each."""

    num_streams: int
    num_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    record.add_output_option(parser)
    parser.add_argument("--serve", choices=("nybble", "bare"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    load = Load(arguments.streams, arguments.tokens)
    if arguments.serve:
        _serve(arguments.serve, arguments.checkpoint, load)
        return
    begun = record.begin("benchmarks.http.stream_rate")
    figures = measure(arguments.checkpoint, load, arguments.runs)
    record.publish(begun.document(figures, ("uvicorn", "uvloop", "httptools")), arguments.output)


def measure(checkpoint: Path, load: Load, num_runs: int) -> dict[str, Any]:
    """Both servers, one after the other, `num_runs` times."""
    rates: dict[str, list[float]] = {"nybble": [], "bare": []}
    with _server("nybble", checkpoint, load) as ours, _server("bare", checkpoint, load) as bare:
        for run in range(num_runs + 1):
            for name, (port, pid) in (("nybble", ours), ("bare", bare)):
                rate = asyncio.run(_rate(port, pid, load))
                if run:  # the first round warms up
                    rates[name].append(rate)
    pairs = zip(rates["nybble"], rates["bare"], strict=True)
    return {
        "events_per_second_per_core": {name: round(median(values)) for name, values in rates.items()},
        "microseconds_per_event": {name: round(1e6 / median(values), 2) for name, values in rates.items()},
        "ratio_to_bare": round(median(ours / bare for ours, bare in pairs), 3),
        "runs": {name: [round(value) for value in values] for name, values in rates.items()},
    }


@contextmanager
def _server(name: str, checkpoint: Path, load: Load) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: (port, process id)."""
    arguments = [str(checkpoint), "--serve", name]
    arguments += ["--streams", str(load.num_streams), "--tokens", str(load.num_tokens)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.http.stream_rate", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            asyncio.run(_wait_until_ready(port))
            yield port, process.pid
        finally:
            process.terminate()


def _serve(name: str, checkpoint: Path, load: Load) -> None:
    from service.app import create_app
    from service.server import DrainingServer
    from service.settings import ServiceSettings
    from service.sockets import bind
    from service.start import make_engine

    settings = ServiceSettings(
        checkpoint=checkpoint, engine="echo", served_model_names=("tiny",), max_num_seqs=load.num_streams
    )
    listener = bind("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    if name == "nybble":
        DrainingServer(create_app(settings, lambda: make_engine(settings)), settings).run(sockets=[listener])
        return
    config = uvicorn.Config(
        BareStream(_TYPICAL_CHUNK, load.num_tokens),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


async def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            head, _ = await _exchange(
                port, b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
        except OSError:
            head = b""
        if head.startswith(b"HTTP/1.1 200"):
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("the server did not become ready")


async def _rate(port: int, pid: int, load: Load) -> float:
    """Events for each second of the server's CPU time, all streams running side by side."""
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "a few words to repeat again and again"}],
            "max_tokens": load.num_tokens,
            "ignore_eos": True,
            "skip_special_tokens": False,  # the echo repeats the template's, and each is to be an event
            "stream": True,
        }
    ).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    before = cpu_seconds(pid)
    answers = await asyncio.gather(*(_exchange(port, request) for _ in range(load.num_streams)))
    seconds = cpu_seconds(pid) - before
    num_events = sum(count for _, count in answers)
    expected = load.num_streams * load.num_tokens
    if any(not head.startswith(b"HTTP/1.1 200") for head, _ in answers) or num_events < expected * 0.9:
        raise RuntimeError(f"{num_events} events came, expected about {expected}: {answers[0][0]!r}")
    return num_events / seconds


async def _exchange(port: int, request: bytes) -> tuple[bytes, int]:
    """Send a request; the answer's beginning, and how many events it had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, num_events, tail = b"", 0, b""
    while data := await reader.read(1 << 16):
        head = head or data[:200]
        num_events += (tail + data).count(b"data: ") - tail.count(b"data: ")
        tail = data[-5:]
    writer.close()
    return head, num_events


if __name__ == "__main__":
    main()
