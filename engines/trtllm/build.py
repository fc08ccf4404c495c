"""A build from plan to manifest: convert, write, run trtllm-build, verify, put in place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.file_digest import file_digest
from engines.convert.conversion import convert
from engines.errors import InvalidRequest
from engines.trtllm.build_identity import build_key, combined_digest, source_digests, source_fingerprint
from engines.trtllm.build_plan import BuildPlan
from engines.trtllm.build_workspace import BUILD_LOG, BuildWorkspace, open_workspace
from engines.trtllm.canaries import make_canaries, why_no_canaries
from engines.trtllm.checkpoint_reader import read_back
from engines.trtllm.checkpoint_writer import checkpoint_num_bytes, write_checkpoint
from engines.trtllm.errors import BuildRefused, DestinationError
from engines.trtllm.fused_scales_check import require_equal_scales
from engines.trtllm.machine import Machine, installed_version
from engines.trtllm.manifest import (
    MANIFEST_VERSION,
    Canary,
    FileRecord,
    Manifest,
    changed_files,
    has_manifest,
    read_manifest,
    write_manifest,
)
from engines.trtllm.preparation import assemble_checkpoint, assemble_engine, check_engine
from engines.trtllm.pytorch_config import LLM_OPTIONS_FILE, write_llm_options
from engines.trtllm.trtllm_build import require_program, run_build

_NOT_RECORDED = (BUILD_LOG, LLM_OPTIONS_FILE)  # the options are the user's to change
# `make_build_plan` names the last two in the command.
_PREPARED, _CHECKPOINT, _ENGINE = "prepared", "trtllm_checkpoint", "engine"


@dataclass(frozen=True, slots=True)
class BuildEvents:
    """What the caller hears: a stage's name as it begins, its progress, and lines of trtllm-build."""

    stage: Callable[[str], None] = lambda _: None
    progress: Callable[[str, int, int], None] = lambda *_: None
    line: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """`was_current`: the destination held this very build already. `resumed`: stages done before."""

    manifest: Manifest
    was_current: bool = False
    resumed: tuple[str, ...] = ()


def build(plan: BuildPlan, machine: Machine, events: BuildEvents = BuildEvents()) -> BuildResult:
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
        work = _Work(plan, machine, events, workspace)
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


@dataclass(slots=True)
class _Work:
    plan: BuildPlan
    machine: Machine
    events: BuildEvents
    workspace: BuildWorkspace
    resumed: list[str] = field(default_factory=list)

    def prepare(self) -> Path:
        """The modelopt NVFP4 directory: the source itself, or what it was converted to."""
        plan = self.plan
        if plan.conversion is None:
            return plan.request.source
        if not self._is_done(_PREPARED):
            self.events.stage("convert to modelopt's NVFP4")
            with self.workspace.run(_PREPARED) as directory:
                convert(replace(plan.conversion, destination=directory), self.events.progress)
        prepared = self.workspace.path(_PREPARED)
        if plan.path == "pytorch":
            require_equal_scales(Checkpoint.open(prepared))
        return prepared

    def build_engine(self, model: Path) -> None:
        """TensorRT-LLM's checkpoint, and from it the engine."""
        plan = self.plan
        if self._is_done(_ENGINE):
            return
        if not self._is_done(_CHECKPOINT):
            self._write_checkpoint(model)
        self.events.stage("run trtllm-build")
        with self.workspace.run(_ENGINE) as directory:
            run_build(plan.argv, self.workspace.log, self.events.line)
            check_engine(directory, str(plan.version), plan.options)

    def _write_checkpoint(self, model: Path) -> None:
        options = self.plan.options
        checkpoint = Checkpoint.open(model)
        needed = options.tensor_parallel * checkpoint_num_bytes(
            checkpoint, options.tensor_parallel, options.kv_cache_dtype
        )
        _check_space(self.workspace.path(_CHECKPOINT).parent, 2 * needed)  # the engine is about as large
        self.events.stage("write TensorRT-LLM's checkpoint")
        with self.workspace.run(_CHECKPOINT) as directory:
            directory.mkdir()
            write_checkpoint(
                checkpoint,
                directory,
                tensor_parallel=options.tensor_parallel,
                kv_cache_dtype=options.kv_cache_dtype,
                progress=self.events.progress,
            )
            self.events.stage("read it back")
            read_back(checkpoint, directory)

    def canaries(self, model: Path) -> tuple[tuple[Canary, ...], tuple[str, ...]]:
        """The answers, and a note when there are none although some were asked for."""
        number = self.plan.request.num_canaries
        if not number:
            return (), ()
        obstacle = why_no_canaries(Checkpoint.open(model))
        if obstacle is not None:
            return (), (obstacle,)
        self.events.stage("canary answers of the CPU engine")
        return make_canaries(model, number, self.plan.options.max_seq_len), ()

    def assemble(self, model: Path, result: Path) -> None:
        """Fill the result's directory."""
        self.events.stage("assemble")
        if self.plan.path == "engine":
            # Moved, so the stage is not done any more, should the rest fail.
            built = self.workspace.path(_ENGINE)
            assemble_engine(self.plan.checkpoint, built, result)
            shutil.copyfile(self.workspace.log, result / BUILD_LOG)
            return
        assemble_checkpoint(model, result)
        write_llm_options(result, self.plan.llm_options)
        Checkpoint.open(result)  # the reader's own checks, before anybody sees the result

    def manifest(self, key: str, canaries: tuple[Canary, ...], notes: tuple[str, ...]) -> Manifest:
        """Everything but what depends on the source's files and the result's."""
        plan = self.plan
        assert plan.device.sm is not None
        return Manifest(
            manifest_version=MANIFEST_VERSION,
            nybble_version=installed_version("nybble") or "unknown",
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            path=plan.path,
            build_key=key,
            source=str(plan.request.source.absolute()),
            source_digest="",
            source_layout=plan.checkpoint.layout.value,
            target=plan.device.name,
            target_sm=plan.device.sm,
            tensorrt_llm_version=str(plan.version),
            machine=self.machine,
            options=plan.options,
            argv=plan.argv,
            files=(),
            canaries=canaries,
            notes=(*plan.notes, *notes),
        )

    def _is_done(self, stage: str) -> bool:
        if not self.workspace.is_done(stage):
            return False
        self.resumed.append(stage)
        return True


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


def _check_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise DestinationError(
            f"{directory}: about {needed_bytes:,} bytes are needed and {free_bytes:,} are free; make room or "
            "choose another ENGINE_DIR"
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
