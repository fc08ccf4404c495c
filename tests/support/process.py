"""A real `nybble serve` process, started as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

NYBBLE = str(Path(sys.executable).with_name("nybble"))
_LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass
class NybbleProcess:
    """A running server; `log` collects what it prints."""

    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def client(self, *, strict: bool = True) -> openai.OpenAI:
        """The official client; when strict it refuses answers that do not fit its own types."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key="none",
            max_retries=0,
            timeout=60.0,
            _strict_response_validation=strict,
        )

    def metric(self, name: str) -> float:
        """The value of one series of /metrics, written as there."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        (line,) = [line for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])

    def stop(self) -> int:
        """SIGTERM, then the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def serve(directory: Path, *arguments: str) -> Iterator[NybbleProcess]:
    """`nybble serve DIR --port 0 ...`, ready to answer; stopped in the end, which must go well."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NYBBLE_")}
    process = subprocess.Popen(
        [NYBBLE, "serve", str(directory), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    server = NybbleProcess(process)
    listening = threading.Event()

    def read_log() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.log.append(line)
            if (match := _LISTENING.search(line)) is not None:
                server.url = match.group(1)
                listening.set()
        listening.set()  # it ended: nobody needs to wait any longer

    reader = threading.Thread(target=read_log, daemon=True)
    reader.start()
    try:
        assert listening.wait(timeout=60), "the server printed no address"
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            status = server.stop()
            assert status == 0, f"exit status {status}: {''.join(server.log)}"
        reader.join(timeout=10)
        if process.stdout is not None:
            process.stdout.close()


def _wait_until_ready(server: NybbleProcess) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"the server ended: {''.join(server.log)}")
        if httpx.get(f"{server.url}/health/ready").status_code == 200:
            return
    pytest.fail(f"not ready in time: {''.join(server.log)}")
