"""What an engine is bound to: GPUs, driver, CUDA, TensorRT, TensorRT-LLM. Imports none of them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_QUERY = ("--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits")
_TIMEOUT_SECONDS = 30
_CUDA_VERSION_FILE = Path("/usr/local/cuda/version.json")
_CUDA_RUNTIME_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """`sm` is the compute capability without its dot (121 for 12.1); `memory_bytes` None where the driver
    does not say, as on unified memory."""

    name: str
    sm: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """None stands for what is absent or could not be found out."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    tensorrt_version: str | None = None
    tensorrt_llm_version: str | None = None


def detect_machine() -> Machine:
    """This machine, from nvidia-smi and the metadata of installed packages; never raises."""
    gpus, driver = parse_gpus(_run_nvidia_smi())
    return Machine(
        gpus=gpus,
        driver_version=driver,
        cuda_version=_cuda_version(),
        tensorrt_version=installed_version("tensorrt"),
        tensorrt_llm_version=installed_version("tensorrt-llm"),
    )


def parse_gpus(output: str) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs and driver version from the lines of nvidia-smi's query; lines it cannot mean are skipped."""
    gpus: list[Gpu] = []
    driver: str | None = None
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not fields[1].replace(".", "", 1).isdigit():
            continue
        name, capability, memory, driver = fields
        major, _, minor = capability.partition(".")
        memory_bytes = int(memory) * _MIB if memory.isdigit() else None  # "[N/A]" on GB10
        gpus.append(Gpu(name, int(major) * 10 + int(minor or 0), memory_bytes))
    return tuple(gpus), driver


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run_nvidia_smi() -> str:
    try:
        ended = subprocess.run(
            ("nvidia-smi", *_QUERY), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _cuda_version() -> str | None:
    """The toolkit's version file where there is one (containers), else the runtime's Python package."""
    try:
        version = json.loads(_CUDA_VERSION_FILE.read_text())["cuda"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    if isinstance(version, str):
        return version
    found = (installed_version(package) for package in _CUDA_RUNTIME_PACKAGES)
    return next((version for version in found if version is not None), None)
