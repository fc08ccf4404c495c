"""The run: reads a BF16 checkpoint stage by stage and writes an FP4 one. Memory holds one layer at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.safetensors_assembly import SafetensorsAssembly
from engines.cpu import kernels
from engines.fp4 import nvfp4
from engines.quantize.calibration import Calibration, input_amax
from engines.quantize.calibration_data import read_samples
from engines.quantize.error_compensation import factorize
from engines.quantize.layouts import METADATA, configuration_files, index_json
from engines.quantize.observation import InputStatistics
from engines.quantize.options import QuantizeOptions
from engines.quantize.plan import Plan, PlannedModule, Stage, make_plan, source_bytes
from engines.quantize.report import (
    REPORT_FILE,
    ModuleError,
    QuantizeReport,
    module_error_from_json,
    stage_errors,
)
from engines.quantize.run_directory import RunDirectory, destination_error
from engines.quantize.source import Source
from engines.quantize.weight_encoder import EncodedWeight, WeightEncoder
from engines.quantize.weight_format import WeightGrid

Float32Array = NDArray[np.float32]

# A calibration token costs a multiplication and an addition with every weight; encoding a weight costs about
# as much as sixteen of those. Only the progress bar depends on it.
_ENCODING_COST = 16.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `completed` of `total` units of work of about equal time, and what is being done."""

    completed: float
    total: float
    activity: str


ProgressListener = Callable[[Progress], None]


def quantize(options: QuantizeOptions, on_progress: ProgressListener | None = None) -> QuantizeReport:
    """Quantise `options.source` to `options.destination`, continuing an interrupted run of the same kind.

    The destination appears at the end, whole, by one rename. Raises QuantizeError or CheckpointError; what a
    failed run had finished stays in a hidden folder beside the destination for the next one.
    """
    started = time.monotonic()
    options.check()
    source = Source(options.source)
    plan = make_plan(source.checkpoint, options)
    samples: list[list[int]] = []
    if options.calibration is not None:
        config = source.checkpoint.config
        samples = read_samples(options.calibration, options.source, config.vocab_size)
        limit = config.max_position_embeddings
        samples = [sample[:limit] for sample in samples]
    _require_space(options, plan)
    directory = RunDirectory(options.destination, _identity(options, source, samples))
    try:
        run = _Run(options, source, plan, samples, directory, on_progress or (lambda _: None))
        report = run.execute(started)
    except OSError as error:
        directory.discard_if_empty()
        raise destination_error(options.destination, error) from error
    except BaseException:
        directory.discard_if_empty()
        raise
    finally:
        directory.close()
    return report


def _identity(options: QuantizeOptions, source: Source, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What has to be equal for a run to continue another; a change of it would change the output."""
    calibration = hashlib.sha256(json.dumps(samples).encode()).hexdigest() if samples else None
    return {
        "source": source.digests,
        "calibration": calibration,
        "format": options.format,
        "layout": options.layout,
        "method": options.method,
        "ignore": list(options.ignore),
        "shard_bytes": options.shard_bytes,
    }


def _require_space(options: QuantizeOptions, plan: Plan) -> None:
    parent = options.destination.absolute().parent
    if parent.exists():
        free = shutil.disk_usage(parent).free
        if free < plan.output_bytes and not options.destination.exists():
            full = OSError(errno.ENOSPC, f"{plan.output_bytes:,} bytes are needed, {free:,} are free")
            raise destination_error(options.destination, full)


class _Run:
    """One pass over the stages of a plan."""

    def __init__(
        self,
        options: QuantizeOptions,
        source: Source,
        plan: Plan,
        samples: Sequence[Sequence[int]],
        directory: RunDirectory,
        on_progress: ProgressListener,
    ) -> None:
        self._options = options
        self._source = source
        self._checkpoint: Checkpoint = source.checkpoint
        self._plan = plan
        self._directory = directory
        self._on_progress = on_progress
        self._activity = ""
        self._completed = 0.0
        self._tokens_cost = 0.0  # work units of one calibration token in the present layer
        self._calibration: Calibration | None = None
        if samples:
            self._calibration = Calibration(
                self._checkpoint,
                samples,
                directory.path,
                wants_hessians=options.method == "gptq",
                on_tokens=lambda count: self._advance(count * self._tokens_cost),
            )
        num_tokens = self._calibration.num_tokens if self._calibration else 0
        self._total = sum(self._cost(stage, num_tokens) for stage in plan.stages)

    def execute(self, started: float) -> QuantizeReport:
        num_resumed = len(self._directory.finished)
        num_threads = self._options.num_threads or kernels.num_threads()
        with self._open_files() as files, WeightEncoder(self._options.method, num_threads) as encoder:
            self._encoder = encoder
            for index, stage in enumerate(self._plan.stages):
                if index < num_resumed:
                    self._completed += self._cost(stage, self._num_tokens)
                    continue
                self._activity = stage.name
                self._advance(0)
                errors = self._do_stage(stage, files)
                for file in set(files.values()):
                    file.sync()
                self._directory.record({"stage": stage.name, "modules": [asdict(error) for error in errors]})
                if self._calibration is not None and stage.layer is not None:
                    self._calibration.forget(stage.layer)
                self._checkpoint.tensors.release_pages()
        return self._finish(started, num_resumed)

    @property
    def _num_tokens(self) -> int:
        return self._calibration.num_tokens if self._calibration else 0

    @staticmethod
    def _cost(stage: Stage, num_tokens: int) -> float:
        tokens = num_tokens if stage.layer is not None else 0
        return stage.num_parameters * (_ENCODING_COST + tokens)

    def _advance(self, work: float) -> None:
        self._completed += work
        self._on_progress(Progress(min(self._completed, self._total), self._total, self._activity))

    @contextmanager
    def _open_files(self) -> Iterator[dict[str, SafetensorsAssembly]]:
        """The output files by the names of their tensors."""
        opened: list[SafetensorsAssembly] = []
        placed: dict[str, SafetensorsAssembly] = {}
        try:
            for name, specs in self._plan.files.items():
                file = SafetensorsAssembly(self._directory.output / name, specs, METADATA)
                opened.append(file)
                placed.update({spec.name: file for spec in specs})
            yield placed
        finally:
            for file in opened:
                file.close()

    def _do_stage(self, stage: Stage, files: dict[str, SafetensorsAssembly]) -> list[ModuleError]:
        statistics: dict[str, InputStatistics] = {}
        if self._calibration is not None:
            if stage.layer is None and stage is self._plan.stages[0]:
                self._calibration.start()
            elif stage.layer is not None:
                self._activity = f"{stage.name}: calibrating"
                self._tokens_cost = float(stage.num_parameters)
                statistics = self._calibration.observe(stage)
        self._activity = f"{stage.name}: quantising"
        for module in stage.modules:
            if not module.quantized:
                self._copy(module, files)
        errors: list[ModuleError] = []
        amaxes = input_amax(statistics, bfloat16_model=self._is_bfloat16)
        for name, modules in stage.groups().items():
            errors += self._quantize_group(modules, statistics.get(name), amaxes.get(name), files)
        return errors

    @property
    def _is_bfloat16(self) -> bool:
        return self._checkpoint.dense("model.embed_tokens").dtype == "BF16"

    def _copy(self, module: PlannedModule, files: dict[str, SafetensorsAssembly]) -> None:
        self._encoder.amax(module.source)  # names the tensor when it is not finite
        spec = module.specs["weight"]
        files[spec.name].write(spec.name, module.source.data.reshape(-1).data)
        self._copy_bias(module, files)
        self._advance(module.num_parameters * _ENCODING_COST)

    def _copy_bias(self, module: PlannedModule, files: dict[str, SafetensorsAssembly]) -> None:
        spec = module.specs.get("bias")
        if spec is not None:
            stored = self._checkpoint.tensors.view(f"{module.source.name}.bias")
            files[spec.name].write(spec.name, stored.tobytes())

    def _quantize_group(
        self,
        modules: Sequence[PlannedModule],
        seen: InputStatistics | None,
        amax: np.float32 | None,
        files: dict[str, SafetensorsAssembly],
    ) -> list[ModuleError]:
        """Modules that share an input share a global scale, as servers that fuse them need."""
        options = self._options
        largest = max(self._encoder.amax(module.source) for module in modules)
        grid = WeightGrid.for_group(
            options.format,
            options.layout,
            largest,
            bfloat16_model=modules[0].source.dtype == "BF16",
            headroom=options.method != "rtn",
        )
        importance = None if seen is None else seen.mean_squares
        factor = None
        if seen is not None and seen.hessian is not None and importance is not None:
            factor = factorize(seen.hessian)
        errors = []
        for module in modules:
            encoded = self._encoder.encode(module.source, grid, importance, factor)
            self._write(module, encoded, amax, files)
            self._copy_bias(module, files)
            errors.append(_module_error(module, encoded, amax))
            self._advance(module.num_parameters * _ENCODING_COST)
        return errors

    def _write(
        self,
        module: PlannedModule,
        encoded: EncodedWeight,
        amax: np.float32 | None,
        files: dict[str, SafetensorsAssembly],
    ) -> None:
        data: dict[str, Any] = {"codes": encoded.packed, "scales": encoded.scales}
        if encoded.global_scale is not None:
            assert amax is not None
            data["global_scale"] = np.array(encoded.global_scale, "<f4")
            data["input_scale"] = np.array(_input_scale(amax, self._options, self._is_bfloat16), "<f4")
        for role, array in data.items():
            spec = module.specs[role]
            files[spec.name].write(spec.name, array.reshape(-1).data)

    def _finish(self, started: float, num_resumed: int) -> QuantizeReport:
        options, plan, output = self._options, self._plan, self._directory.output
        self._activity = "finishing"
        raw = read_json_object(options.source / "config.json")
        contents = configuration_files(raw, plan.ignore, options.format, options.layout)
        if len(plan.files) > 1:
            contents["model.safetensors.index.json"] = index_json(plan.files)
        self._source.copy_companions(output)
        self._source.require_unchanged()
        report = self._report(time.monotonic() - started, num_resumed)
        contents[REPORT_FILE] = json.dumps(report.as_stored(), indent=2) + "\n"
        for name, content in contents.items():
            (output / name).write_text(content, encoding="utf-8")
        self._directory.publish()
        self._advance(self._total)
        return report

    def _report(self, seconds: float, num_resumed: int) -> QuantizeReport:
        options, plan = self._options, self._plan
        modules: list[ModuleError] = []
        stages = []
        for entry in self._directory.finished:
            errors = [module_error_from_json(fields) for fields in entry["modules"]]
            modules += errors
            if errors:
                stages.append(stage_errors(entry["stage"], errors))
        return QuantizeReport(
            source=str(options.source),
            destination=str(options.destination),
            format=options.format,
            layout=options.layout,
            method=options.method,
            num_parameters=plan.num_parameters,
            num_quantized_parameters=sum(module.num_parameters for module in modules),
            source_bytes=source_bytes(plan),
            output_bytes=plan.output_bytes,
            num_files=len(plan.files),
            num_calibration_samples=self._calibration.num_samples if self._calibration else 0,
            num_calibration_tokens=self._num_tokens,
            modules=tuple(modules),
            stages=tuple(stages),
            seconds=seconds,
            num_resumed_stages=num_resumed,
        )


def _input_scale(amax: np.float32, options: QuantizeOptions, bfloat16_model: bool) -> float:
    """The static scale of a layer's input as the layout stores it: a divisor or a multiplier."""
    if options.layout == "compressed-tensors":
        observed = np.array([amax], np.float32)
        return nvfp4.global_scale_compressed_tensors(observed, bfloat16_model=bfloat16_model)
    return float(np.float32(amax / np.float32(2688)))


def _module_error(module: PlannedModule, encoded: EncodedWeight, amax: np.float32 | None) -> ModuleError:
    output_error = None
    if encoded.weighted_error is not None and encoded.weighted_norm:
        output_error = encoded.weighted_error / encoded.weighted_norm
    return ModuleError(
        name=module.name,
        num_parameters=module.num_parameters,
        weight_error=encoded.squared_error / encoded.squared_norm if encoded.squared_norm else 0.0,
        output_error=output_error,
        input_amax=None if amax is None else float(amax),
    )
