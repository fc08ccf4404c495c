"""The workers of several machines, as the LLM meets them under trtllm-llmapi-launch."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from tests.support.fake_tensorrt_llm.behaviour import Behaviour

_MPI_PREFIXES = ("OMPI_", "PMIX_", "PMI_")


def join_workers(arguments: Any, behaviour: Behaviour) -> None:
    """Compare the layout with the ranks there are; a lost one leaves the others waiting, in silence.

    Without the launch script there is nothing to join: the runtime starts its own workers.
    """
    if os.environ.get("TLLM_SPAWN_PROXY_PROCESS") != "1":
        if arguments.gpus_per_node is not None:
            raise ValueError("gpus_per_node on one machine")
        return
    if any(name.startswith(_MPI_PREFIXES) for name in os.environ):
        raise RuntimeError("MPI_Init would be called a second time: its variables are still there")
    if arguments.gpus_per_node is None:
        raise ValueError("gpus_per_node has to be set over several machines")
    host, _, port = os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"].removeprefix("tcp://").partition(":")
    leader = socket.create_connection((host, int(port)), timeout=30)
    leader.settimeout(None)
    num_ranks = int(leader.makefile().readline())
    world_size = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    if num_ranks != world_size:
        raise RuntimeError(f"the layout needs {world_size} ranks and mpirun started {num_ranks}")

    def watch() -> None:
        if leader.recv(1):
            behaviour.is_hung = True

    threading.Thread(target=watch, daemon=True).start()
