"""`mpirun ... trtllm-llmapi-launch nybble serve` with real processes: rank 0 serves, the others work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import fake_mpi
from tests.support.process import NYBBLE
from tests.support.service import wait_until
from tests.support.trtllm_process import fake_environment

_LISTENING = re.compile(r"listening on (http://\S+)")
_WORKER = re.compile(r"worker of rank (\d+), process (\d+)")


class Job:
    """A running mpirun; `log` is what all its processes print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        found = _LISTENING.findall(self.log)
        assert len(found) == 1, self.log
        return str(found[0])

    @property
    def workers(self) -> dict[int, int]:
        """Process id by rank."""
        return {int(rank): int(pid) for rank, pid in _WORKER.findall(self.log)}

    def wait_until_ready(self) -> None:
        wait_until(lambda: "listening on" in self.log, seconds=60, what="an address")
        wait_until(self._is_ready, seconds=60, what="ready")

    def wait(self) -> int:
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return status

    def complete(self) -> httpx.Response:
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        return httpx.get(f"{self.url}/health/ready").status_code == 200

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


@contextmanager
def job(
    directory: Path, checkpoint: Path, num_ranks: int, *arguments: str, launcher: bool = True
) -> Iterator[Job]:
    """mpirun of so many ranks on machines of two GPUs each."""
    fake_mpi.install(directory)
    script = ["trtllm-llmapi-launch"] if launcher else []
    command = [NYBBLE, "serve", str(checkpoint), "--engine", "trtllm", "--port", "0", *arguments]
    process = subprocess.Popen(
        [str(directory / "mpirun"), "-n", str(num_ranks), *script, *command, "--served-model-name", "tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=fake_environment(directory, num_gpus=2),
    )
    try:
        yield Job(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def checkpoint(golden: Path) -> Path:
    return golden / "mixtral-nvfp4-modelopt"


LAYOUT = ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2")


def test_rank_0_serves_the_others_work_and_all_end_on_a_signal(checkpoint: Path, tmp_path: Path) -> None:
    with job(tmp_path, checkpoint, 4, *LAYOUT) as running:
        running.wait_until_ready()
        answer = running.complete()
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 8
        assert sorted(running.workers) == [1, 2, 3]
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0, running.log


@pytest.mark.parametrize("num_ranks", [2, 5])
def test_ranks_that_do_not_fit_the_layout_are_refused(
    num_ranks: int, checkpoint: Path, tmp_path: Path
) -> None:
    with job(tmp_path, checkpoint, num_ranks, *LAYOUT) as running:
        assert running.wait() == 1
        assert f"the layout needs 4 ranks and mpirun started {num_ranks}" in running.log


def test_without_the_script_nobody_serves(checkpoint: Path, tmp_path: Path) -> None:
    with job(tmp_path, checkpoint, 2, "--tensor-parallel-size", "2", launcher=False) as running:
        assert running.wait() == 1
        assert "OMPI_COMM_WORLD_SIZE is 2: mpirun or srun started 2 processes" in running.log
        assert "listening on" not in running.log


def test_a_worker_that_is_lost_ends_the_job(checkpoint: Path, tmp_path: Path) -> None:
    """Nobody tells the leader: the others wait for it in silence, which the watchdog notices."""
    with job(tmp_path, checkpoint, 2, "--tensor-parallel-size", "2", "--stall-timeout", "1") as running:
        running.wait_until_ready()
        os.kill(running.workers[1], signal.SIGUSR1)  # it ends, with status 0
        answer = running.complete()
        assert answer.status_code == 503
        assert "no step and no token for" in answer.text
        assert running.wait() == 1
        assert "TensorRT-LLM has stopped: no step and no token" in running.log
