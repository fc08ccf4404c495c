"""The stages of a build: convert, write TensorRT-LLM's checkpoint, trtllm-build, canaries, assemble."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from engines.checkpoint.checkpoint import Checkpoint
from engines.convert.conversion import convert
from engines.trtllm.build_plan import BuildPlan
from engines.trtllm.build_workspace import BUILD_LOG, BuildWorkspace
from engines.trtllm.canaries import make_canaries, why_no_canaries
from engines.trtllm.checkpoint_reader import read_back
from engines.trtllm.checkpoint_writer import checkpoint_num_bytes, write_checkpoint
from engines.trtllm.errors import DestinationError
from engines.trtllm.fused_scales_check import require_equal_scales
from engines.trtllm.machine import Machine, installed_version
from engines.trtllm.manifest import MANIFEST_VERSION, Canary, Manifest
from engines.trtllm.preparation import assemble_checkpoint, assemble_engine, check_engine
from engines.trtllm.pytorch_config import write_llm_options
from engines.trtllm.trtllm_build import run_build

# `make_build_plan` names the last two in the command.
_PREPARED, _CHECKPOINT, _ENGINE = "prepared", "trtllm_checkpoint", "engine"


@dataclass(frozen=True, slots=True)
class BuildEvents:
    """What the caller hears: a stage's name as it begins, its progress, and lines of trtllm-build."""

    stage: Callable[[str], None] = lambda _: None
    progress: Callable[[str, int, int], None] = lambda *_: None
    line: Callable[[str], None] = lambda _: None


SILENT = BuildEvents()


@dataclass(slots=True)
class BuildStages:
    """The work of one build. `resumed` names the stages found done by an earlier attempt."""

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


def _check_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise DestinationError(
            f"{directory}: about {needed_bytes:,} bytes are needed and {free_bytes:,} are free; make room or "
            "choose another ENGINE_DIR"
        )
