"""What `nybble doctor` knows of the machine besides its GPUs: processor, memory, Python packages."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineError
from engines.host_memory import MEMINFO, parse_meminfo
from engines.processor import processor
from engines.trtllm.machine import Machine, detect_machine, installed_version

_RUNTIME_PACKAGES = ("tensorrt-llm", "tensorrt", "torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class MachineReport:
    """`kernels`: the instruction set our kernels use, or why there are none. Sizes are None where unknown."""

    processor: str
    num_logical_cores: int
    cpu_features: tuple[str, ...]
    kernels: str
    total_memory_bytes: int | None
    available_memory_bytes: int | None
    python_version: str
    packages: tuple[tuple[str, str | None], ...]
    gpu_side: Machine


def machine_report() -> MachineReport:
    """Look at this machine. Never raises."""
    name, features = processor()
    memory = _memory()
    return MachineReport(
        processor=name,
        num_logical_cores=os.cpu_count() or 1,
        cpu_features=features,
        kernels=_kernels(),
        total_memory_bytes=memory.get("MemTotal"),
        available_memory_bytes=memory.get("MemAvailable"),
        python_version=platform.python_version(),
        packages=tuple((name, installed_version(name)) for name in _RUNTIME_PACKAGES),
        gpu_side=detect_machine(),
    )


def _memory() -> dict[str, int]:
    return parse_meminfo(_text(MEMINFO))


def _kernels() -> str:
    try:
        from engines.cpu import kernels

        return kernels.isa_name()
    except (ImportError, EngineError) as error:
        return f"not usable: {error}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
