"""A build from plan to manifest: convert, write, run trtllm-build, verify, put in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engines.checkpoint.file_digest import file_digest
from engines.errors import InvalidRequest
from engines.trtllm.build_identity import build_key, combined_digest, source_digests, source_fingerprint
from engines.trtllm.build_plan import BuildPlan
from engines.trtllm.build_stages import SILENT, BuildEvents, BuildStages
from engines.trtllm.build_workspace import BUILD_LOG, open_workspace
from engines.trtllm.errors import BuildRefused, DestinationError
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import (
    FileRecord,
    Manifest,
    changed_files,
    has_manifest,
    read_manifest,
    write_manifest,
)
from engines.trtllm.pytorch_config import LLM_OPTIONS_FILE
from engines.trtllm.trtllm_build import require_program

_NOT_RECORDED = (BUILD_LOG, LLM_OPTIONS_FILE)  # the options are the user's to change


@dataclass(frozen=True, slots=True)
class BuildResult:
    """`was_current`: the destination held this very build already. `resumed`: stages done before."""

    manifest: Manifest
    was_current: bool = False
    resumed: tuple[str, ...] = ()


def build(plan: BuildPlan, machine: Machine, events: BuildEvents = SILENT) -> BuildResult:
    """Carry out `plan` on `machine`. The destination is absent until it is whole and checked.

    An attempt that fails or is interrupted keeps its finished stages for the next one with the same inputs.
    Raises BuildError, ConversionError, CheckpointError, and what the CPU engine raises for the canaries.
    """
    _require_buildable(plan, machine)
    destination = plan.request.destination
    fingerprint = source_fingerprint(plan)
    existing = _existing(destination)
    digests: dict[Path, str] = {}
    if existing is not None and existing.source_fingerprint == fingerprint:
        digest = existing.source_digest
    else:
        events.stage("hash the source")
        digests = source_digests(plan)
        digest = combined_digest(digests)
    key = build_key(plan, digest, machine)
    if existing is not None:
        _require_same(existing, key, destination)
        return BuildResult(existing, was_current=True)
    with open_workspace(destination, key) as workspace:
        work = BuildStages(plan, machine, events, workspace)
        model = work.prepare()
        if plan.path == "engine":
            work.build_engine(model)
        canaries, notes = work.canaries(model)
        with workspace.result() as result:
            work.assemble(model, result)
            if source_fingerprint(plan) != fingerprint:
                raise BuildRefused(
                    f"{plan.request.source}: its files changed while they were read; build it again"
                )
            manifest = replace(
                work.manifest(key, canaries, notes),
                source_digest=digest,
                source_fingerprint=fingerprint,
                files=_records(result, digests if plan.conversion is None else {}),
            )
            write_manifest(result, manifest)
    return BuildResult(manifest, resumed=tuple(work.resumed))


def _require_buildable(plan: BuildPlan, machine: Machine) -> None:
    """A TensorRT engine is built by the release and on the GPU that will run it.

    Raises BuildRefused, and InvalidRequest for a calibration file that is not there.
    """
    calibration = plan.request.calibration
    if calibration is not None and not calibration.file.is_file():
        raise InvalidRequest(f"--calibration: {calibration.file} is no file; expected JSON lines")
    if plan.path != "engine":
        return
    if machine.tensorrt_llm_version != str(plan.version):
        raise BuildRefused(
            f"an engine for TensorRT-LLM {plan.version} has to be built by it, and "
            f"{machine.tensorrt_llm_version or 'none'} is installed here; --dry-run only plans, and --path "
            "pytorch needs neither GPU nor TensorRT-LLM"
        )
    require_program()
    if not machine.gpus or machine.gpus[0].sm != plan.device.sm:
        got = f"{machine.gpus[0].name} (SM {machine.gpus[0].sm})" if machine.gpus else "no GPU"
        raise BuildRefused(
            f"an engine for {plan.device.title} (SM {plan.device.sm}) has to be built on one, and this "
            f"machine has {got}; --dry-run only plans, and --path pytorch needs no GPU"
        )


def _existing(destination: Path) -> Manifest | None:
    """The manifest of what is at the destination, None when nothing is. Raises DestinationError."""
    if not (destination.exists() or destination.is_symlink()):
        return None
    if not has_manifest(destination):
        raise DestinationError(
            f"{destination}: exists and was not made by nybble build; choose another ENGINE_DIR"
        )
    return read_manifest(destination)


def _require_same(existing: Manifest, key: str, destination: Path) -> None:
    if existing.build_key != key:
        raise DestinationError(
            f"{destination}: holds another build (of {existing.source} for {existing.target}, TensorRT-LLM "
            f"{existing.tensorrt_llm_version}, made {existing.created_at}); remove it or choose another "
            "ENGINE_DIR"
        )
    changed = changed_files(existing, destination)
    if changed:
        raise DestinationError(
            f"{destination}: holds this build, but damaged: {'; '.join(changed)}; remove it and build again"
        )


def _records(directory: Path, source_digests: Mapping[Path, str]) -> tuple[FileRecord, ...]:
    """All files but log, options and manifest. A linked file's digest is that of its source, read before."""
    known = {(path.stat().st_dev, path.stat().st_ino): digest for path, digest in source_digests.items()}
    records = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not path.is_file() or name in _NOT_RECORDED:
            continue
        status = path.stat()
        digest = known.get((status.st_dev, status.st_ino)) or file_digest(path)
        records.append(FileRecord(name, status.st_size, digest))
    return tuple(records)
