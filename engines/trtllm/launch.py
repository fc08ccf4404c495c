"""How the process was started: alone, or as rank 0 of a multi-node job.

Over several nodes the command is `mpirun ... trtllm-llmapi-launch nybble serve DIR`. That script lets rank 0
run the command, without MPI's variables, and makes the other ranks workers; so only rank 0 ever gets here.
Without the script every rank would start a server of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from engines.errors import StartFailed

_LAUNCHED = "TLLM_SPAWN_PROXY_PROCESS"
# The number of processes of the running job step, as each launcher states it.
_JOB_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def is_multi_node(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether trtllm-llmapi-launch started the process: the workers exist already, perhaps on other nodes."""
    return environment.get(_LAUNCHED) == "1"


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Raises StartFailed when the process is one of many that would all serve."""
    if is_multi_node(environment):
        return
    for name in _JOB_SIZES:
        size = environment.get(name, "1")
        if size.isdecimal() and int(size) > 1:
            raise StartFailed(
                f"{name} is {size}: mpirun or srun started {size} processes, and each would serve. Start "
                "them as `mpirun -n RANKS trtllm-llmapi-launch nybble serve DIR`, so that rank 0 serves and "
                "the others work for it; on one machine start `nybble serve` alone, with "
                "--tensor-parallel-size"
            )
