"""Nybble's side of a worker: start it, ask it, keep it still while others are measured, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engines
from engines.bench.peers.environment import worker_environment
from engines.bench.peers.system import Limits, Measurement, PeerUnavailable, System

_LOAD_SECONDS = 900.0
_RUN_SECONDS = 900.0
_END_SECONDS = 10.0
_LAST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker says when its model is ready."""

    seconds: float
    versions: Mapping[str, str]


def worker_command(system: System, limits: Limits) -> list[str]:
    """The command of a system's worker, to be run where it finds `engines`."""
    options = {**asdict(limits), "model": str(system.model), "settings": dict(system.settings)}
    return [str(system.python), "-m", "engines.bench.peers.workers", system.worker, json.dumps(options)]


class Worker:
    """A running worker, `loaded`. Use `start_worker`; close it in the end."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Any, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        self._process = process
        self._log = log
        self._folder = folder
        self._unread = b""

    def wait_until_loaded(self) -> Loaded:
        """Raises PeerUnavailable with what it said when it could not load."""
        loaded = self._answer(_LOAD_SECONDS, "loading")
        if "missing" in loaded:
            raise PeerUnavailable(f"not installed: {loaded['missing']}")
        if "failed" in loaded:
            raise PeerUnavailable(f"does not load the model: {loaded['failed']}")
        return Loaded(loaded["loaded"]["seconds"], loaded["loaded"]["versions"])

    def measure(self, run: Measurement) -> float:
        """Tokens a second. Raises PeerUnavailable when it fails or dies."""
        answer = self._run(run)
        if "failed" in answer:
            raise PeerUnavailable(f"{run.name} failed: {answer['failed']}")
        return float(answer["tokens_per_second"])

    def warm_up(self, run: Measurement) -> None:
        """The same without a figure, for which it may be too short. Raises PeerUnavailable when it dies."""
        self._run(run)

    def _run(self, run: Measurement) -> dict[str, Any]:
        request = asdict(run)
        del request["name"]
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is told by the missing answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(_RUN_SECONDS, run.name)

    def hold(self) -> None:
        """Stop all its threads: a waiting system may spin."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `hold`."""
        self._signal(signal.SIGCONT)

    def peak_resident_bytes(self) -> int | None:
        """The most memory it has held, mapped files included; None where the kernel does not say."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(sizes[0]) * 1024 if sizes else None

    def close(self) -> None:
        """End it and all that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._signal(signal.SIGKILL)  # what it may have left behind in its group
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _answer(self, seconds: float, doing: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            assert self._process.stdout is not None
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            if not readable:
                raise PeerUnavailable(f"{doing}: no answer within {seconds:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise PeerUnavailable(f"{doing}: {self._cause_of_death()}")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cause_of_death(self) -> str:
        status = self._process.wait()
        cause = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._log.seek(0)
        said = " ".join(self._log.read().decode(errors="replace").split())[-_LAST_WORDS:]
        return f"{cause}; it said: {said}" if said else cause


def start_worker(system: System, limits: Limits, *, command: Sequence[str] | None = None) -> Worker:
    """Start `system`, by `command` if that is given. Raises PeerUnavailable without such a Python."""
    # A folder in which `engines` is all there is to import: Nybble's other packages are for its own Python.
    folder = tempfile.TemporaryDirectory(prefix="nybble-worker-")
    Path(folder.name, "engines").symlink_to(Path(engines.__file__).parent)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the worker closes it
    try:
        process = subprocess.Popen(
            command or worker_command(system, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder.name,
            env=worker_environment(os.environ, system.family, limits),
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        folder.cleanup()
        raise PeerUnavailable(f"cannot be started: {error}") from error
    return Worker(process, log, folder)
