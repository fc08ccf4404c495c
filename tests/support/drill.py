"""A server process to be maltreated: started, signalled, killed, watched from outside."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.service import wait_until

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "mistral-mxfp4-ct"
MODEL = CHECKPOINT.name
_MAIN = "from service.cli import main; main()"


@dataclass
class Drill:
    """A running `nybble serve`; `lines` is its log."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10, verify=False))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int:
        return int(self._logged(r"listening on https?://127\.0\.0\.1:(\d+)"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def health_url(self) -> str:
        port = self._logged(r"health checks and metrics on port (\d+)")
        return f"http://127.0.0.1:{port}"

    def health(self, probe: str) -> httpx.Response:
        """An answer of the health port."""
        return self.http.get(f"{self.health_url}/health/{probe}")

    def metric(self, name: str) -> float:
        """The value of one series, as the health port tells it."""
        text = self.http.get(f"{self.health_url}/metrics").raise_for_status().text
        (line,) = [line for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.health("ready").status_code == 200, seconds=60, what="it is ready")

    def wait(self, seconds: float = 30.0) -> int:
        """The exit status."""
        return self.popen.wait(timeout=seconds)

    def _logged(self, pattern: str) -> str:
        (found,) = re.findall(pattern, self.log)
        return str(found)


@contextmanager
def drill(
    *options: str, engine: str = "echo", port: int = 0, main: str = _MAIN, **environment: str
) -> Iterator[Drill]:
    """Start the process and wait until it listens, not until it is ready; in the end it is killed.

    `main` is the Python that is run.
    """
    command = [sys.executable, "-c", main, "serve", str(CHECKPOINT), "--engine", engine]
    command += ["--port", str(port), "--health-port", "0", *options]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("NYBBLE_")}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**inherited, **environment}, cwd=ROOT
    ) as popen:
        process = Drill(popen)

        def read_log() -> None:
            assert popen.stderr is not None
            process.lines.extend(iter(popen.stderr.readline, ""))

        reader = threading.Thread(target=read_log)
        reader.start()
        try:
            wait_until(
                lambda: "listening on" in process.log or popen.poll() is not None,
                seconds=60,
                what="it listens",
            )
            yield process
        finally:
            process.http.close()
            popen.kill()
            popen.wait()
            reader.join()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to. `status` 0: the connection failed. `is_whole`: nothing was cut off."""

    status: int
    text: str
    is_whole: bool

    @property
    def is_complete_stream(self) -> bool:
        """All of it came, up to its proper end."""
        return self.is_whole and self.text.endswith("data: [DONE]\n\n")

    @property
    def last_event(self) -> dict[str, Any]:
        """The event before [DONE]."""
        events = [line[6:] for line in self.text.splitlines() if line.startswith("data: {")]
        loaded: dict[str, Any] = json.loads(events[-1])
        return loaded


_CLIENT = httpx.Client(verify=False, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def ask(url: str, path: str, body: dict[str, object], api_key: str = "none") -> Answer:
    """Send a request and read whatever comes."""
    received = ""
    status = 0
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        with _CLIENT.stream("POST", url + path, json=body, headers=headers) as answer:
            status = answer.status_code
            for text in answer.iter_text():
                received += text
    except httpx.TransportError:
        return Answer(status, received, False)
    return Answer(status, received, True)


class Load:
    """Clients that ask the same again and again until they are told to stop, or nobody answers any more."""

    def __init__(
        self, url: str, num_clients: int, path: str, body: dict[str, object], api_key: str = "none"
    ) -> None:
        self.api_key = api_key
        self.answers: list[Answer] = []
        self._stopping = threading.Event()
        self._url, self._path, self._body = url, path, body
        self._threads = [threading.Thread(target=self._run) for _ in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def wait_for_more(self, num_answers: int) -> None:
        """Until so many more answers have come."""
        goal = len(self.answers) + num_answers
        wait_until(lambda: len(self.answers) >= goal, seconds=60, what="the load goes on")

    def wait_for_silence(self) -> None:
        """Until every client has seen that nobody answers any more."""
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            answer = ask(self._url, self._path, self._body, self.api_key)
            self.answers.append(answer)
            if answer.status == 0:
                return


def open_raw(port: int, path: str, body: dict[str, object]) -> socket.socket:
    """Send a request and leave it open; closing the socket is the disconnect."""
    content = json.dumps(body)
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    return connection


def served_certificate(port: int) -> bytes:
    """The certificate, in DER, that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate
