"""`nybble serve` with the echo engine, as a process whose memory can be watched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from benchmarks.soak.traffic import MODEL
from engines.bench.server_process import free_port

_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0


class ServerUnderTest:
    """A context manager; raises RuntimeError when the server does not get ready or does not stop cleanly."""

    def __init__(
        self, checkpoint: Path, step_seconds: float, max_num_seqs: int, queued_requests: int
    ) -> None:
        self.port, self.health_port = free_port(), free_port()
        self._command = [
            sys.executable, "-c", "from service.cli import main; main()", "serve", str(checkpoint),
            "--engine", "echo", "--served-model-name", MODEL, "--log-level", "error",
            "--port", str(self.port), "--health-port", str(self.health_port),
            "--max-num-seqs", str(max_num_seqs), "--max-queued-requests", str(queued_requests),
        ]  # fmt: skip
        self._environment = {**os.environ, "NYBBLE_ECHO_FAULTS": f"step_seconds={step_seconds}"}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerUnderTest:
        self._process = subprocess.Popen(self._command, env=self._environment)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError("the server did not get ready; see its messages above")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"the server did not stop within {_STOP_SECONDS:.0f} s of SIGTERM") from None
        if status != 0 and error is None:
            raise RuntimeError(f"the server ended with status {status} after SIGTERM; expected 0")

    def resident_bytes(self) -> int:
        """The process' resident memory now."""
        assert self._process is not None
        statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()
        return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")

    def metrics(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/health/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False
