"""One run over the stages of a plan: calibrate, quantise, write, record; then publish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.tensors import Fp4Tensors
from engines.cpu import kernels
from engines.quantize.calibration import Calibration, input_amax
from engines.quantize.group_quantizer import GroupInput, GroupQuantizer
from engines.quantize.layouts import configuration_files, index_json
from engines.quantize.options import QuantizeOptions
from engines.quantize.output_files import OutputFiles
from engines.quantize.plan import Plan, PlannedModule, Stage, source_bytes
from engines.quantize.quantized_stream import QuantizedStream
from engines.quantize.report import (
    REPORT_FILE,
    ModuleError,
    QuantizeReport,
    module_error_from_json,
    stage_errors,
)
from engines.quantize.run_directory import RunDirectory
from engines.quantize.source import Source
from engines.quantize.weight_encoder import WeightEncoder

# A calibration token costs a multiplication and an addition with every weight; encoding a weight takes about
# as long as this many of those. Only the progress bar depends on them.
_ENCODING_COST = 16.0
_COMPENSATION_COST = 4096.0
_HESSIAN_LIMIT_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `completed` of `total` units of about equal time, and what is being done."""

    completed: float
    total: float
    activity: str


ProgressListener = Callable[[Progress], None]


class Run:
    """`execute` does it all, once. What it finishes is in the journal before it goes on."""

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
        self._token_cost = 0.0  # work of one calibration token in the present layer
        self._calibration: Calibration | None = None
        self._stream: QuantizedStream | None = None
        if samples:
            self._calibration = Calibration(self._checkpoint, samples, directory.path, self._tokens_done)
        if self._calibration is not None and options.method == "gptq":
            self._stream = QuantizedStream(
                self._checkpoint,
                self._calibration.forward,
                directory.path,
                original=self._calibration.hidden,
                on_tokens=self._tokens_done,
            )
        self._total = sum(self._cost(stage) for stage in plan.stages)
        # What the libraries would compute in bfloat16 depends on the model's dtype, not on one tensor's.
        self._is_bfloat16 = self._checkpoint.dense("model.embed_tokens").dtype == "BF16"

    def execute(self) -> QuantizeReport:
        """Quantise what the journal does not have yet, and publish. Raises as `quantizer.quantize` says."""
        started = time.monotonic()
        num_resumed = len(self._directory.finished)
        num_threads = self._options.num_threads or kernels.num_threads()
        with (
            OutputFiles(self._directory.output, self._plan.files) as output,
            WeightEncoder(self._options.method, num_threads) as encoder,
        ):
            quantizer = GroupQuantizer(self._options, encoder, output, bfloat16_model=self._is_bfloat16)
            for index, stage in enumerate(self._plan.stages):
                done = self._completed + self._cost(stage)
                if index >= num_resumed:
                    self._copy_unquantized(stage, encoder, output)
                    self._finish_stage(stage, output, self._quantize(stage, quantizer))
                self._completed = done
        report = self._report(time.monotonic() - started, num_resumed)
        self._publish(report)
        return report

    def _quantize(self, stage: Stage, quantizer: GroupQuantizer) -> list[ModuleError]:
        if stage is self._plan.stages[0]:
            for stream in (self._calibration, self._stream):
                if stream is not None:
                    stream.start()
        if stage.layer is None:
            return []
        errors: list[ModuleError] = []
        replaced: dict[str, Fp4Tensors] = {}
        groups = stage.groups()
        for names, inputs in self._inputs(stage, replaced):
            for name in names:
                self._report_progress(f"{stage.name}: quantising")
                for module in quantizer.quantize(groups[name], inputs[name]):
                    replaced[module.tensors.name] = module.tensors
                    errors.append(module.error)
                    self._completed += module.error.num_parameters * self._weight_cost
        if self._stream is not None:
            self._stream.advance(stage, replaced)
        return errors

    def _inputs(
        self, stage: Stage, replaced: dict[str, Fp4Tensors]
    ) -> Iterator[tuple[list[str], dict[str, GroupInput]]]:
        """Groups that can be quantised one after another, and what is known of their inputs.

        With error compensation a group's input depends on those before it, which `replaced` holds by then.
        """
        names = list(stage.groups())
        if self._calibration is None:
            yield names, {name: GroupInput() for name in names}
            return
        self._report_progress(f"{stage.name}: calibrating")
        self._token_cost = float(stage.num_parameters)
        statistics = self._calibration.observe(stage)
        amax = input_amax(statistics, bfloat16_model=self._is_bfloat16)
        if self._stream is None:
            yield names, {name: GroupInput(amax[name], statistics[name].mean_squares) for name in names}
            return
        for part in _parts(stage):
            self._report_progress(f"{stage.name}: calibrating")
            paired = self._stream.observe(stage, part, replaced)
            inputs = {}
            for name in part:
                squares = paired[name].mean_squares
                hessian = None if squares is None else paired[name].hessian
                inputs[name] = GroupInput(amax[name], squares, hessian, paired[name].shift)
            yield part, inputs

    def _copy_unquantized(self, stage: Stage, encoder: WeightEncoder, output: OutputFiles) -> None:
        self._report_progress(f"{stage.name}: copying")
        for module in stage.modules:
            if not module.quantized:
                encoder.amax(module.source)  # refuses what is not finite
                output.write(module.specs["weight"], module.source.data)
                self._completed += module.num_parameters * self._weight_cost
            self._copy_bias(module, output)

    def _copy_bias(self, module: PlannedModule, output: OutputFiles) -> None:
        if "bias" in module.specs:
            output.write(module.specs["bias"], self._checkpoint.tensors.view(f"{module.source.name}.bias"))

    def _finish_stage(self, stage: Stage, output: OutputFiles, errors: Sequence[ModuleError]) -> None:
        output.sync(stage.specs)
        self._directory.record({"stage": stage.name, "modules": [asdict(error) for error in errors]})
        for stream in (self._calibration, self._stream):
            if stream is not None and stage.layer is not None:
                stream.forget(stage.layer)
        self._checkpoint.tensors.release_pages()

    def _publish(self, report: QuantizeReport) -> None:
        options, plan, output = self._options, self._plan, self._directory.output
        self._report_progress("publishing")
        contents = configuration_files(
            read_json_object(options.source / "config.json"), plan.ignore, options.format, options.layout
        )
        if len(plan.files) > 1:
            contents["model.safetensors.index.json"] = index_json(plan.files)
        contents[REPORT_FILE] = json.dumps(report.as_stored(), indent=2) + "\n"
        self._source.copy_companions(output)
        for name, content in contents.items():
            (output / name).write_text(content, encoding="utf-8")
        self._source.require_unchanged()
        self._directory.publish()

    @property
    def _weight_cost(self) -> float:
        return _COMPENSATION_COST if self._options.method == "gptq" else _ENCODING_COST

    @property
    def _num_tokens(self) -> int:
        return self._calibration.num_tokens if self._calibration else 0

    def _cost(self, stage: Stage) -> float:
        passes = 0
        if self._calibration is not None and stage.layer is not None:
            passes = 1 if self._stream is None else 2 + len(_parts(stage))
        return stage.num_parameters * (self._weight_cost + passes * self._num_tokens)

    def _tokens_done(self, count: int) -> None:
        self._completed += count * self._token_cost
        self._report_progress(self._activity)

    def _report_progress(self, activity: str) -> None:
        self._activity = activity
        self._on_progress(Progress(min(self._completed, self._total), self._total, activity))

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


def _parts(stage: Stage) -> list[list[str]]:
    """Groups of one kind (all experts' gate and up, say) in the model's order, as many as memory allows."""
    by_kind: dict[str, list[str]] = {}
    groups = stage.groups()
    for name in groups:
        by_kind.setdefault(name.rpartition(".")[2], []).append(name)
    parts: list[list[str]] = []
    for names in by_kind.values():
        columns = int(groups[names[0]][0].source.data.shape[1])
        step = max(1, _HESSIAN_LIMIT_BYTES // (columns * columns * 4))
        parts += [names[start : start + step] for start in range(0, len(names), step)]
    return parts
