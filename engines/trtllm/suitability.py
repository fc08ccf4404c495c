"""Whether TensorRT-LLM can run a checkpoint on a machine; one answer for the engine, `inspect`, `doctor` and
`--engine auto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import HF_QUANT_CONFIG, Layout
from engines.checkpoint.tensors import Fp4Tensors
from engines.errors import CheckpointError, EngineError
from engines.trtllm import runtime
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import has_manifest, read_manifest, stale_reasons
from engines.trtllm.versions import features_of

# NVFP4 on tensor cores begins with Blackwell (reference sections 3.7 and 4.1).
OLDEST_FP4_SM = 100


class Fit(str, Enum):
    """How a checkpoint and an engine go together on this machine."""

    RUNS = "runs"
    AFTER_CONVERT = "runs after convert"
    CANNOT = "cannot"


@dataclass(frozen=True, slots=True)
class Suitability:
    """`reasons` say what stands in the way (or that nothing does), `command` what to type about it."""

    fit: Fit
    reasons: tuple[str, ...]
    command: str | None = None

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(self.reasons)


def suitability(directory: Path, machine: Machine) -> Suitability:
    """Judge the checkpoint, or what `nybble build` made, in `directory`. Raises CheckpointError."""
    if has_manifest(directory):
        manifest = read_manifest(directory)
        stale = stale_reasons(manifest, directory, machine)
        obstacles = (*_release_obstacles(machine), *stale)
        if obstacles:
            return Suitability(Fit.CANNOT, obstacles, f"nybble build {manifest.source} ENGINE_DIR")
        return Suitability(Fit.RUNS, (f"built for {manifest.target}",))
    return checkpoint_suitability(Checkpoint.open(directory), directory, machine)


def checkpoint_suitability(checkpoint: Checkpoint, directory: Path, machine: Machine) -> Suitability:
    """The same for a checkpoint that is open already."""
    obstacles = (*machine_obstacles(machine), *_gpu_obstacles(checkpoint.layout, machine))
    conversion, command = conversion_needed(checkpoint, directory)
    if obstacles:
        return Suitability(Fit.CANNOT, (*obstacles, *conversion), _first_fix(machine, command))
    if conversion:
        return Suitability(Fit.AFTER_CONVERT, conversion, command)
    return Suitability(Fit.RUNS, ("all requirements are met",))


def machine_obstacles(machine: Machine) -> tuple[str, ...]:
    """Why no checkpoint at all can run; empty when a GPU and a supported package are there."""
    obstacles = () if machine.gpus else ("no NVIDIA GPU was found (nvidia-smi)",)
    return (*obstacles, *_release_obstacles(machine))


def conversion_needed(checkpoint: Checkpoint, directory: Path) -> tuple[tuple[str, ...], str | None]:
    """What TensorRT-LLM would not accept of the files, and the command that makes files it does accept."""
    layout = checkpoint.layout
    if layout is Layout.PLAIN:
        return (), None
    convert = f"nybble convert {directory} DST --to nvfp4-modelopt"
    calibrated = f"{convert} --calibration FILE.jsonl"
    if layout in (Layout.COMPRESSED_TENSORS_MXFP4, Layout.COMPRESSED_TENSORS_MIXED):
        return ("dense MXFP4 layers need a conversion to NVFP4",), calibrated
    if layout is Layout.COMPRESSED_TENSORS_NVFP4:
        return ("the compressed-tensors layout needs a conversion to modelopt's",), convert
    needed = []
    fp4 = [module for module in checkpoint.modules() if isinstance(module, Fp4Tensors)]
    if any(module.input_scale is None for module in fp4):
        needed.append("NVFP4 layers without input scales need a calibration")
    if not (directory / HF_QUANT_CONFIG).is_file():
        needed.append(f"{HF_QUANT_CONFIG} is missing")
        return tuple(needed), f"nybble build {directory} ENGINE_DIR"
    return tuple(needed), calibrated if needed else None


def _gpu_obstacles(layout: Layout, machine: Machine) -> tuple[str, ...]:
    if layout is Layout.PLAIN:
        return ()
    return tuple(
        f"{gpu.name} (SM {gpu.sm}) has no FP4 tensor cores; expected SM {OLDEST_FP4_SM} or newer (Blackwell)"
        for gpu in machine.gpus[:1]
        if gpu.sm < OLDEST_FP4_SM
    )


def _release_obstacles(machine: Machine) -> tuple[str, ...]:
    if not runtime.is_installed():
        return ("the package tensorrt_llm is not installed",)
    if machine.tensorrt_llm_version is None:
        return ()
    try:
        features_of(machine.tensorrt_llm_version)
    except EngineError as error:
        return (str(error),)
    return ()


def _first_fix(machine: Machine, command: str | None) -> str | None:
    if machine.gpus and not runtime.is_installed():
        return runtime.INSTALL_COMMAND
    return command


def describe(directory: Path, machine: Machine) -> Suitability:
    """Like `suitability`, with the checkpoint's own faults as an answer."""
    try:
        return suitability(directory, machine)
    except CheckpointError as error:
        return Suitability(Fit.CANNOT, (str(error),))
