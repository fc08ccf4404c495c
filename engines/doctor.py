"""Which engine can run which checkpoint on this machine, why not, and what to type about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.inspection import cpu_reason
from engines.errors import CheckpointError, UnsupportedCheckpoint
from engines.machine_report import MachineReport, machine_report
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import has_manifest, read_manifest
from engines.trtllm.suitability import Fit, describe


@dataclass(frozen=True, slots=True)
class Finding:
    """One cell of the table. `command` is what to type: to serve, or to change the verdict."""

    checkpoint: Path
    engine: str
    fit: Fit
    reason: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `nybble doctor` shows."""

    machine: MachineReport
    findings: tuple[Finding, ...]


def diagnose(directory: Path | None) -> Diagnosis:
    """The machine, and every checkpoint in `directory` (itself, or the folders in it) with every engine.

    Raises CheckpointError when there is a directory but no checkpoint in it.
    """
    machine = machine_report()
    checkpoints = () if directory is None else find_checkpoints(directory)
    findings = tuple(finding for checkpoint in checkpoints for finding in judge(checkpoint, machine.gpu_side))
    return Diagnosis(machine, findings)


def find_checkpoints(directory: Path) -> tuple[Path, ...]:
    """`directory` when it has a config.json, else its folders that have one. Raises UnsupportedCheckpoint."""
    if (directory / "config.json").is_file():
        return (directory,)
    found = tuple(sorted(path.parent for path in directory.glob("*/config.json")))
    if not found:
        raise UnsupportedCheckpoint(
            f"{directory} has no config.json, nor has a folder in it; expected a checkpoint, or several"
        )
    return found


def judge(directory: Path, machine: Machine) -> tuple[Finding, ...]:
    """One checkpoint with each engine that has a model."""
    tensorrt_llm = describe(directory, machine)
    serve = f"nybble serve {directory} --engine trtllm"
    command = serve if tensorrt_llm.fit is Fit.RUNS else tensorrt_llm.command
    return (
        _judge_cpu(directory),
        Finding(directory, "trtllm", tensorrt_llm.fit, tensorrt_llm.reason, command),
    )


def _judge_cpu(directory: Path) -> Finding:
    try:
        if has_manifest(directory):
            manifest = read_manifest(directory)
            if manifest.path == "engine":
                return Finding(
                    directory,
                    "cpu",
                    Fit.CANNOT,
                    "it holds an engine of trtllm-build, which is no checkpoint",
                    f"nybble serve {manifest.source} --engine cpu",
                )
        checkpoint = Checkpoint.open(directory)
    except CheckpointError as error:
        return Finding(directory, "cpu", Fit.CANNOT, str(error))
    reason, arguments = cpu_reason(checkpoint)
    return Finding(
        directory, "cpu", Fit.RUNS, reason, " ".join((f"nybble serve {directory} --engine cpu", *arguments))
    )
