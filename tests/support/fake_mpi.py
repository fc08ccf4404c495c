"""mpirun and trtllm-llmapi-launch of paper, as programs: what they set, what they take away, who runs what.

    install(directory)        # the two programs, to be put first on the PATH

mpirun starts N processes with Open MPI's variables, hands signals on, and ends all with the first failure.
The launch script is that of the notes on TensorRT-LLM (section 6): rank 0 runs the command without MPI's
variables and with the address of the leader, who knows the workers; the other ranks are workers, whatever the
command is. The fake LLM joins them (tests/support/fake_tensorrt_llm/workers.py).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

_RENDEZVOUS = "FAKE_MPI_RENDEZVOUS"
_MPI_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "SLURM_", _RENDEZVOUS)
_JOIN_SECONDS = 30.0


def install(directory: Path) -> None:
    """Write both programs into `directory`."""
    for name, function in (("mpirun", "mpirun"), ("trtllm-llmapi-launch", "launch")):
        path = directory / name
        path.write_text(
            f"#!{sys.executable}\nimport sys\nfrom tests.support.fake_mpi import {function}\n"
            f"sys.exit({function}(sys.argv[1:]))\n"
        )
        path.chmod(0o755)


def mpirun(arguments: list[str]) -> int:
    """mpirun -n N COMMAND..."""
    assert arguments[0] == "-n", "only -n N is known"
    size, command = int(arguments[1]), arguments[2:]
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    ranks = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "OMPI_COMM_WORLD_SIZE": str(size),
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                "PMIX_RANK": str(rank),
                _RENDEZVOUS: str(port),
            },
        )
        for rank in range(size)
    ]

    def hand_on(number: int, _: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    status = 0
    while any(rank.poll() is None for rank in ranks):
        failed = [rank.returncode for rank in ranks if rank.returncode]
        if failed:
            status = failed[0]
            hand_on(signal.SIGKILL, None)
        time.sleep(0.02)
    return status or next((rank.returncode for rank in ranks if rank.returncode), 0)


def launch(command: list[str]) -> int:
    """trtllm-llmapi-launch COMMAND..."""
    rank, size = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    port = int(os.environ[_RENDEZVOUS])
    return _lead(command, size, port) if rank == 0 else _work(rank, port)


def _work(rank: int, port: int) -> int:
    """A worker: it ends when the leader lets go of it. SIGTERM is for the leader to act on; SIGUSR1 makes the
    worker leave without a word."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            leader = socket.create_connection(("127.0.0.1", port), timeout=1)
            break
        except OSError:
            if time.monotonic() > deadline:
                return 1
            time.sleep(0.02)
    leader.settimeout(None)
    print(f"worker of rank {rank}, process {os.getpid()}", flush=True)
    with leader:
        leader.recv(1)
    return 0


def _lead(command: list[str], size: int, port: int) -> int:
    listener = socket.create_server(("127.0.0.1", port))
    workers = [listener.accept()[0] for _ in range(size - 1)]
    proxy = socket.create_server(("127.0.0.1", 0))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_MPI_PREFIXES)}
    environment["TLLM_SPAWN_PROXY_PROCESS"] = "1"
    environment["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"] = f"tcp://127.0.0.1:{proxy.getsockname()[1]}"
    environment["TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"] = "00" * 32
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    threading.Thread(target=_serve_proxy, args=(proxy, workers, size), daemon=True).start()
    status = process.wait()
    for worker in workers:
        worker.close()
    return status if status >= 0 else 128 - status


def _serve_proxy(proxy: socket.socket, workers: list[socket.socket], size: int) -> None:
    """Tell the LLM how many ranks there are, and with a byte that one is gone."""
    client, _ = proxy.accept()
    client.sendall(f"{size}\n".encode())

    def watch(worker: socket.socket) -> None:
        try:
            worker.recv(1)  # nothing ever comes but the end
            client.sendall(b"!")
        except OSError:  # all is over
            return

    for worker in workers:
        threading.Thread(target=watch, args=(worker,), daemon=True).start()
