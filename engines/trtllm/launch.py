"""How the process was started: alone, or as rank 0 of a job over several machines.

Over several machines the command is `mpirun ... trtllm-llmapi-launch nybble serve DIR`, one rank for each GPU
(reference section 6). On every rank but 0 that script runs TensorRT-LLM's own worker, so nybble is only ever
started on rank 0: without MPI's variables, and with the address at which it finds the workers. Without the
script every rank would start a server of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from engines.base import EngineOptions
from engines.errors import StartFailed

_LAUNCHED = "TLLM_SPAWN_PROXY_PROCESS"
_ADDRESS = "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"
# The number of processes of the running job step, and the own number, as each launcher states them.
_JOB_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_JOB_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_COMMAND = "mpirun -n RANKS trtllm-llmapi-launch nybble serve DIR --engine trtllm"


@dataclass(frozen=True, slots=True)
class Launch:
    """`is_multi_node`: the workers exist already, perhaps on other machines, and are not started here."""

    is_multi_node: bool = False


ALONE = Launch()


def detect_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """How this process was started. Raises StartFailed when it is one of many that would all serve, or when
    what a leader needs is missing."""
    if environment.get(_LAUNCHED) == "1":
        _check_leader(environment)
        return Launch(is_multi_node=True)
    for name in _JOB_SIZES:
        size = environment.get(name, "1")
        if size.isdecimal() and int(size) > 1:
            raise StartFailed(
                f"{name} is {size}: mpirun or srun started {size} processes, and each would serve. Start "
                f"them as `{_COMMAND}`, so that rank 0 serves and the others work for it; on one machine "
                "start `nybble serve` alone, with --tensor-parallel-size"
            )
    return ALONE


def _check_leader(environment: Mapping[str, str]) -> None:
    """The script takes MPI's variables away; where they are, its own were handed on by somebody else."""
    for name in _JOB_RANKS:
        rank = environment.get(name, "0")
        if rank.isdecimal() and int(rank) > 0:
            raise StartFailed(
                f"{_LAUNCHED} is 1 and {name} is {rank}: only rank 0 may serve. Do not set {_LAUNCHED} "
                f"yourself (mpirun -x); start the job as `{_COMMAND}`"
            )
    if not environment.get(_ADDRESS):
        raise StartFailed(
            f"{_LAUNCHED} is 1 but {_ADDRESS} is not set, so the workers cannot be found. Do not set "
            f"{_LAUNCHED} yourself; start the job as `{_COMMAND}`"
        )


def gpus_per_node(options: EngineOptions, num_local_gpus: int, launch: Launch) -> int:
    """How many GPUs of each machine the model can have. Raises StartFailed when it cannot be laid out so.

    The number of ranks that mpirun started is not known here: the runtime compares it.
    """
    world_size = options.tensor_parallel_size * options.pipeline_parallel_size
    layout = _layout(options)
    if not launch.is_multi_node:
        if world_size > num_local_gpus:
            raise StartFailed(
                f"{layout} and this machine has {num_local_gpus} GPUs; lower it, or start over several "
                f"machines: `{_COMMAND}`"
            )
        return num_local_gpus
    per_node = options.gpus_per_node or num_local_gpus
    if per_node > num_local_gpus:
        raise StartFailed(
            f"gpus_per_node is {per_node} and this machine has {num_local_gpus} GPUs; expected at most that "
            "many, and as many on every machine"
        )
    if world_size > per_node and world_size % per_node:
        raise StartFailed(
            f"{layout}, which {per_node} GPUs a machine cannot be filled with; expected a multiple of "
            f"{per_node} (see --gpus-per-node)"
        )
    return per_node


def _layout(options: EngineOptions) -> str:
    """What needs how many GPUs, in words."""
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size
    if pipeline == 1:
        return f"tensor_parallel_size is {tensor}"
    return f"tensor_parallel_size {tensor} x pipeline_parallel_size {pipeline} need {tensor * pipeline} GPUs"
