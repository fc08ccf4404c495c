"""Which GPU an engine is built for: named by the user, or the one of this machine."""

from __future__ import annotations

from engines.capacity.devices import GPUS, Device, gpu_named
from engines.errors import InvalidRequest
from engines.trtllm.machine import Machine

AUTO = "auto"


def resolve_target(name: str, machine: Machine) -> Device:
    """The device called `name`; "auto" is the first GPU of `machine`. Raises InvalidRequest."""
    if name != AUTO:
        return gpu_named(name)
    names = ", ".join(device.name for device in GPUS)
    if not machine.gpus:
        raise InvalidRequest(f"--target auto: no NVIDIA GPU was found (nvidia-smi); name one of: {names}")
    gpu = machine.gpus[0]
    fitting = [device for device in GPUS if device.sm == gpu.sm]
    if not fitting:
        raise InvalidRequest(
            f"--target auto: {gpu.name} (SM {gpu.sm}) is none of {names}, and NVFP4 needs Blackwell; "
            "name a target to plan for another machine"
        )
    # B200 and GB200 share an SM; the name tells them apart.
    return next((device for device in fitting if device.name.upper() in gpu.name.upper().split()), fitting[0])
