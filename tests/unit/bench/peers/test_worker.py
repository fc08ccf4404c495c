"""A worker's process: what it is told, what it says, and what is said of it when it cannot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.bench.peers import worker as worker_module
from engines.bench.peers.environment import worker_environment
from engines.bench.peers.system import Limits, Measurement, PeerUnavailable, System
from engines.bench.peers.worker import Loaded, Worker, start_worker, worker_command

LIMITS = Limits(1, tuple(sorted(os.sched_getaffinity(0)))[:1], 4, 64, 512)
SYSTEM = System("fake", "llama.cpp", "fake", Path("model.gguf"), Path(sys.executable), {"a": "b"})
DECODE = Measurement("decode, 4 streams", 4, 16, 9)
PREFILL = Measurement("prefill 40", 1, 40, 0)

SERVE = """
from engines.bench.peers.workers.worker_loop import serve, random_prompts
import os, sys
class Fake:
    def __init__(self, options):
        self.options = options
        {load}
    def versions(self):
        return dict(fake="1", settings=str(self.options.settings), cores=str(os.sched_getaffinity(0)))
    def prefill(self, num_tokens):
        print("printed by a library")
        return float(num_tokens)
    def decode(self, num_streams, num_prompt_tokens, num_tokens):
        {decode}
        return float(num_streams * 10000 + num_prompt_tokens * 100 + num_tokens)
serve(Fake, sys.argv[1])
"""


class Started:
    """Workers of one test, closed at its end."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def __call__(self, load: str = "pass", decode: str = "pass") -> Worker:
        script = SERVE.format(load=load, decode=decode)
        command = [sys.executable, "-c", script, worker_command(SYSTEM, LIMITS)[-1]]
        self._workers.append(start_worker(SYSTEM, LIMITS, command=command))
        return self._workers[-1]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


@pytest.fixture
def started() -> Iterator[Started]:
    workers = Started()
    yield workers
    workers.close()


def test_the_talk(started: Started) -> None:
    worker = started()
    loaded = worker.wait_until_loaded()
    assert loaded == Loaded(
        loaded.seconds, {"fake": "1", "settings": "{'a': 'b'}", "cores": str(set(LIMITS.cores))}
    )
    assert worker.measure(PREFILL) == 40.0
    assert worker.measure(DECODE) == 41609.0
    peak = worker.peak_resident_bytes()
    assert peak is not None
    assert peak > 1 << 20


def test_held_and_going_on(started: Started) -> None:
    worker = started()
    worker.wait_until_loaded()
    worker.hold()
    stopped = os.waitid(os.P_PID, worker._process.pid, os.WSTOPPED | os.WNOWAIT)
    assert stopped is not None
    assert stopped.si_code == os.CLD_STOPPED
    worker.go_on()
    assert worker.measure(PREFILL) == 40.0


def test_a_held_worker_can_be_closed(started: Started) -> None:
    worker = started()
    worker.wait_until_loaded()
    worker.hold()
    worker.close()
    assert worker._process.returncode == 0


def test_not_installed(started: Started) -> None:
    with pytest.raises(PeerUnavailable, match=r"^not installed: No module named 'no_such_peer'"):
        started(load="import no_such_peer").wait_until_loaded()


def test_a_model_that_it_does_not_load(started: Started) -> None:
    worker = started(load="raise ValueError('unknown quantization  mxfp4')")
    with pytest.raises(
        PeerUnavailable, match="does not load the model: ValueError: unknown quantization mxfp4"
    ):
        worker.wait_until_loaded()


def test_death_by_signal_with_its_last_words(started: Started) -> None:
    worker = started(decode="print('illegal tile'); sys.stdout.flush(); os.kill(os.getpid(), 4)")
    worker.wait_until_loaded()
    with pytest.raises(PeerUnavailable, match="decode, 4 streams: killed by SIGILL; it said: illegal tile"):
        worker.measure(DECODE)


def test_a_run_that_fails(started: Started) -> None:
    worker = started(decode="raise RuntimeError('no room')")
    worker.wait_until_loaded()
    with pytest.raises(PeerUnavailable, match="decode, 4 streams failed: RuntimeError: no room"):
        worker.measure(DECODE)


def test_warming_up_needs_no_figure(started: Started) -> None:
    worker = started(decode="raise ValueError('too short to time')")
    worker.wait_until_loaded()
    worker.warm_up(DECODE)
    assert worker.measure(PREFILL) == 40.0


def test_no_answer_in_time(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = started()
    worker.wait_until_loaded()
    monkeypatch.setattr(worker_module, "_RUN_SECONDS", 0.01)
    worker.hold()
    with pytest.raises(PeerUnavailable, match="prefill 40: no answer within 0 s"):
        worker.measure(PREFILL)


def test_a_python_that_is_not_there() -> None:
    system = System("fake", "vLLM", "vllm", Path("model"), Path("/no/such/python"))
    with pytest.raises(PeerUnavailable, match=r"cannot be started: .*no/such/python"):
        start_worker(system, LIMITS)


def test_only_nybbles_own_package_is_lent(started: Started) -> None:
    """What Nybble depends on may clash with what the peer has."""
    worker = started(load="self.options.settings['seen'] = str(sorted(os.listdir()))")
    assert "'seen': \"['engines']\"" in worker.wait_until_loaded().versions["settings"]


def test_the_command() -> None:
    command = worker_command(SYSTEM, LIMITS)
    assert command[:4] == [sys.executable, "-m", "engines.bench.peers.workers", "fake"]
    assert json.loads(command[4]) == {
        "model": "model.gguf",
        "num_threads": 1,
        "cores": list(LIMITS.cores),
        "max_num_seqs": 4,
        "max_model_len": 64,
        "vocab_size": 512,
        "settings": {"a": "b"},
    }


def test_each_system_gets_its_threads() -> None:
    limits = Limits(2, (0, 2), 4, 64, 512)
    own = {"HOME": "/home/x", "OMP_NUM_THREADS": "64", "NYBBLE_API_KEY": "secret", "PYTHONPATH": "/x"}
    llama = worker_environment(own, "llama.cpp", limits)
    assert llama["OMP_NUM_THREADS"] == "2"
    assert llama["OMP_PLACES"] == "{0},{2}"
    vllm = worker_environment(own, "vLLM", limits)
    assert vllm["VLLM_CPU_OMP_THREADS_BIND"] == "0,2"
    assert "OMP_NUM_THREADS" not in vllm
    for environment in (llama, vllm, worker_environment(own, "nybble", limits)):
        assert environment["HOME"] == "/home/x"
        assert not {"NYBBLE_API_KEY", "PYTHONPATH"} & environment.keys()
