"""The devices capacity is planned for: what their makers publish, per GPU (sources in docs/capacity.md)."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import InvalidRequest

# What else lies in a device's memory. Estimates; nobody has measured them on the hardware yet.
GPU_RUNTIME_BYTES = 3 * 1024**3  # CUDA context, kernels, CUDA graphs, autotuner workspaces
HOST_BYTES = 8 * 1024**3  # operating system, this service, page cache; where memory is unified
KV_CACHE_SHARE = 0.9  # of what is left then

_TERA = 10**12
_GIGA = 10**9


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or this machine's CPU. `sm` is the compute capability without its dot, None for a CPU.

    `bandwidth` in bytes a second; `fp4_flops` and `bf16_flops` a second, dense (makers like to print the
    sparse figure, twice as much). `unified_memory`: the operating system lives in the same memory.
    """

    name: str
    title: str
    sm: int | None
    memory_bytes: int
    bandwidth: float
    fp4_flops: float
    bf16_flops: float
    unified_memory: bool = False


GPUS = (
    Device("gb10", "GB10 (DGX Spark)", 121, 128 * _GIGA, 273 * _GIGA, 500 * _TERA, 125 * _TERA, True),
    Device(
        "rtx6000-blackwell",
        "RTX PRO 6000 Blackwell",
        120,
        96 * _GIGA,
        1792 * _GIGA,
        2000 * _TERA,
        500 * _TERA,
    ),
    Device("b200", "B200 (HGX)", 100, 180 * _GIGA, 8 * _TERA, 9000 * _TERA, 2250 * _TERA),
    Device("gb200", "GB200 (one of its GPUs)", 100, 186 * _GIGA, 8 * _TERA, 10000 * _TERA, 2500 * _TERA),
)


def gpu_named(name: str) -> Device:
    """The GPU called `name`. Raises InvalidRequest."""
    found = next((device for device in GPUS if device.name == name), None)
    if found is None:
        known = ", ".join(device.name for device in GPUS)
        raise InvalidRequest(f"target {name!r:.50} is unknown; expected one of: {known}")
    return found
