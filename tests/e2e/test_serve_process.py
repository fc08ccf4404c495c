"""The `nybble serve` process: start, stop, and what goes wrong before it can serve."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.service import wait_until

NYBBLE = (sys.executable, "-c", "from service.cli import main; main()")
CHECKPOINT = Path(__file__).parents[1] / "golden" / "mistral-mxfp4-ct"


@dataclass
class Process:
    """A running `nybble serve`; its log is read along so that it never blocks."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def read_log(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line)

    @property
    def port(self) -> int:
        (port,) = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", "".join(self.lines))
        return int(port)


@contextmanager
def serve(*options: str, checkpoint: Path = CHECKPOINT) -> Iterator[Process]:
    """Start the process on a free port and wait until it listens (not until it is ready)."""
    command = [*NYBBLE, "serve", str(checkpoint), "--engine", "echo", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as popen:
        process = Process(popen)
        reader = threading.Thread(target=process.read_log)
        reader.start()
        try:
            wait_until(
                lambda: any("listening" in line for line in process.lines), seconds=30, what="it listens"
            )
            yield process
        finally:
            popen.kill()
            popen.wait()
            reader.join()


def wait_until_ready(http: httpx.Client) -> None:
    wait_until(lambda: http.get("/health/ready").status_code == 200, seconds=30, what="it is ready")


def open_stalled_stream(port: int) -> socket.socket:
    """Start a long stream and read nothing of it, so that it stays in flight for as long as we like.

    Its 20 MB are far more than the socket's two buffers hold (4 MiB and 64 KiB).
    """
    body = json.dumps(
        {"model": CHECKPOINT.name, "prompt": "x", "stream": True, "ignore_eos": True, "max_tokens": 150_000}
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def test_sigterm_finishes_what_runs_and_exits_with_0() -> None:
    with serve("--max-model-len", "200000") as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
            wait_until_ready(http)
            with open_stalled_stream(process.port) as stream:
                process.popen.send_signal(signal.SIGTERM)
                wait_until(
                    lambda: http.get("/health/ready").status_code == 503, seconds=5, what="readiness is off"
                )
                assert http.get("/health/live").status_code == 200
                refused = http.post("/v1/completions", json={"model": CHECKPOINT.name, "prompt": "x"})
                assert refused.status_code == 503
                assert process.popen.poll() is None
                received = b"".join(iter(lambda: stream.recv(1 << 20), b""))
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert received.count(b'"finish_reason":"length"') == 1
        assert process.popen.wait(timeout=20) == 0


def test_the_drain_has_an_end() -> None:
    with serve("--max-model-len", "200000", "--drain-timeout", "0.1") as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
            wait_until_ready(http)
        with open_stalled_stream(process.port):
            started = time.monotonic()
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(timeout=20) == 0
            assert time.monotonic() - started < 15
    assert any("did not finish in time" in line for line in process.lines)


def test_an_idle_server_stops_at_once() -> None:
    with serve() as process, httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
        wait_until_ready(http)
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(timeout=10) == 0


def test_it_listens_while_the_model_loads_and_can_be_stopped_then() -> None:
    with serve() as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
            assert http.get("/health/live").status_code == 200
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(timeout=20) == 0


def test_no_prompt_reaches_the_log() -> None:
    with serve("--log-level", "debug", "--log-format", "json") as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{process.port}") as http:
            wait_until_ready(http)
            for prompt in ("a very private word", "\ud800 very private"):
                body = json.dumps({"model": CHECKPOINT.name, "prompt": prompt, "suffix": None})
                http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(timeout=20) == 0
    log = [json.loads(line) for line in process.lines]
    assert [line["status"] for line in log if "/v1/completions" in line["message"]] == [200, 400]
    assert "private" not in "".join(process.lines)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NYBBLE, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_checkpoint_that_cannot_be_loaded_ends_the_process(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    result = run("serve", str(tmp_path / "broken"), "--engine", "echo", "--port", "0", "--log-level", "error")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "config.json" in result.stderr
