"""A conversion from open to rename: plan, calibrate, write file after file, compare every weight."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.safetensors_writer import TensorSpec, stream_safetensors
from engines.checkpoint.shards import INDEX_FILE, SINGLE_FILE
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.convert.destination import (
    carry_files,
    check_destination,
    check_space,
    write_text,
    written_aside,
)
from engines.convert.errors import ConversionError, NotLossless
from engines.convert.input_scales import carried_input_scale, observe_input_maxima, stored_input_scale
from engines.convert.options import ConvertOptions, Target
from engines.convert.plan import InputScale, Plan, PlannedModule, check_source, make_plan
from engines.convert.rewrites import ExponentRewrite
from engines.convert.verification import WeightDifference, compare_weights
from engines.evaluate.documents import TextEncoder, read_samples
from engines.quantize.layouts import METADATA, configuration_files, index_json

Progress = Callable[[str, int, int], None]
"""Called with the phase ("calibrate" or "convert"), what is done of it and its total, in tokens or bytes."""


@dataclass(frozen=True, slots=True)
class ConvertedWeight:
    """What became of one FP4 weight, under its name in the target."""

    name: str
    difference: WeightDifference


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """`weights` in the order they were written. `left_out`: the source's tensors that belong to no module.

    `max_span`: binades of the widest fused group of MXFP4 block scales, of which 17 are exact; None without
    MXFP4.
    """

    source_layout: str
    target: Target
    weights: tuple[ConvertedWeight, ...]
    num_dense_modules: int
    max_span: int | None
    calibrated: bool
    output_bytes: int
    left_out: tuple[str, ...]
    seconds: float

    @property
    def num_equal_in_float32(self) -> int:
        """Weights whose decoded numbers are bit-equal before and after."""
        return sum(weight.difference.equal_in_float32 for weight in self.weights)

    @property
    def num_equal_in_bfloat16(self) -> int:
        """Weights whose decoded numbers are bit-equal once rounded to bfloat16, those above included."""
        return sum(weight.difference.equal_in_bfloat16 for weight in self.weights)

    @property
    def worst(self) -> ConvertedWeight | None:
        """The weight that changed most, by relative error; None when none changed."""
        changed = [weight for weight in self.weights if not weight.difference.equal_in_float32]
        return max(changed, key=lambda weight: weight.difference.relative_error, default=None)


def convert(options: ConvertOptions, progress: Progress = lambda *_: None) -> ConversionReport:
    """Convert a checkpoint; the destination is absent until it is whole and checked.

    Every FP4 weight is decoded before and after and compared bit by bit while it is written. Peak memory is a
    few tensors (and the engine, while it calibrates). Raises CheckpointError for the source, NotLossless when
    a weight would change and `options.lossy` is not set, NoInputScales, DestinationError, InvalidRequest.
    """
    started = time.perf_counter()
    check_destination(options.destination)
    checkpoint = Checkpoint.open(options.source)
    check_source(checkpoint, options)
    # Refusals first: what cannot be lossless should not wait for a calibration.
    input_scale = _input_scales(checkpoint, options, progress)
    plan = make_plan(checkpoint, options, input_scale)
    check_space(options.destination, plan.output_bytes)
    before = _fingerprint(options.source)
    writer = _Writer(checkpoint, plan, options, progress)
    with written_aside(options.destination) as aside:
        for file, specs in plan.files.items():
            stream_safetensors(aside / file, specs, writer.data(specs), METADATA)
        _write_configuration(aside, checkpoint, plan, options)
        carry_files(options.source, aside)
        if _fingerprint(options.source) != before:
            raise ConversionError(
                f"{options.source}: its files changed while they were read; run the conversion again"
            )
        Checkpoint.open(aside)  # the reader's own checks, before anybody sees the result
    rewrites = [module.rewrite for module in plan.modules]
    spans = [rewrite.span for rewrite in rewrites if isinstance(rewrite, ExponentRewrite)]
    return ConversionReport(
        source_layout=checkpoint.layout.value,
        target=options.target,
        weights=tuple(writer.weights),
        num_dense_modules=rewrites.count(None),
        max_span=max(spans, default=None),
        calibrated=options.calibration is not None,
        output_bytes=plan.output_bytes,
        left_out=plan.left_out,
        seconds=time.perf_counter() - started,
    )


def _input_scales(checkpoint: Checkpoint, options: ConvertOptions, progress: Progress) -> InputScale:
    """What gives each module its input scale in the target."""
    if options.weight_only or (options.calibration is None and _is_weight_only(checkpoint, options.target)):
        return lambda _: None
    if options.calibration is None:
        for module in checkpoint.modules():
            if isinstance(module, Fp4Tensors):
                carried_input_scale(module, options.target)
        return lambda module: carried_input_scale(module, options.target)
    make_plan(checkpoint, options, lambda _: None)
    samples = read_samples(
        options.calibration.file,
        TextEncoder(options.source),
        num_samples=options.calibration.num_samples,
        max_length=min(options.calibration.max_length, checkpoint.config.max_position_embeddings),
        vocab_size=checkpoint.config.vocab_size,
    )
    total, done = sum(map(len, samples)), 0

    def count(num_tokens: int) -> None:
        nonlocal done
        done += num_tokens
        progress("calibrate", done, total)

    maxima = observe_input_maxima(checkpoint, samples, count)
    bfloat16_model = checkpoint.config.dtype == "bfloat16"
    return lambda module: stored_input_scale(
        maxima[module.name], options.target, bfloat16_model=bfloat16_model
    )


def _is_weight_only(checkpoint: Checkpoint, target: Target) -> bool:
    """Whether source and target leave activations alone; modelopt's layout has no way to say so."""
    if target is not Target.NVFP4_COMPRESSED_TENSORS:
        return False
    return not any(
        isinstance(module, Fp4Tensors) and module.quantizes_activations for module in checkpoint.modules()
    )


@dataclass(slots=True)
class _Writer:
    """Gives the bytes of each tensor in turn, and judges each FP4 weight when its codes' turn has come."""

    checkpoint: Checkpoint
    plan: Plan
    options: ConvertOptions
    progress: Progress
    weights: list[ConvertedWeight] = field(default_factory=list)
    num_done_bytes: int = 0

    def data(self, specs: Sequence[TensorSpec]) -> Iterator[memoryview]:
        """The bytes of `specs`, which are all in one file."""
        wanted = {spec.name for spec in specs}
        owners = {
            spec.name: (module, role)
            for module in self.plan.modules
            for role, spec in module.specs.items()
            if spec.name in wanted
        }
        for spec in specs:
            module, role = owners[spec.name]
            yield np.ascontiguousarray(self._array(module, role)).reshape(-1).view(np.uint8).data
            self.num_done_bytes += spec.num_bytes
            self.progress("convert", self.num_done_bytes, self.plan.output_bytes)

    def _array(self, module: PlannedModule, role: str) -> NDArray[Any]:
        source = module.source
        if role == "bias":
            return self.checkpoint.tensors.view(f"{source.name}.bias")
        if isinstance(source, DenseTensors):
            return source.data
        if role == "input_scale":
            return np.array(module.input_scale, np.float32)
        if role == "global_scale":
            assert module.rewrite is not None
            return np.array(module.rewrite.global_scale(source), np.float32)
        converted = module.converted()
        if role == "scales":
            return converted.scales
        self._judge(source, converted)
        return converted.packed

    def _judge(self, source: Fp4Tensors, converted: Fp4Tensors) -> None:
        difference = compare_weights(source, converted)
        # From one NVFP4 layout to the other, equality is that of what compressed-tensors decodes: bfloat16.
        is_equal = difference.equal_in_float32 or (source.format == "nvfp4" and difference.equal_in_bfloat16)
        if not (is_equal or self.options.lossy):
            raise NotLossless(
                f"{source.name}: its decoded weights would differ by up to {difference.max_error:g}, which "
                "the plan did not foresee; this is a fault of nybble: please report it"
            )
        self.weights.append(ConvertedWeight(converted.name, difference))


def _write_configuration(aside: Path, checkpoint: Checkpoint, plan: Plan, options: ConvertOptions) -> None:
    if set(plan.files) != {SINGLE_FILE}:
        write_text(aside / INDEX_FILE, index_json(plan.files))
    config = read_json_object(options.source / "config.json")
    config.pop("compression_config", None)
    layout = options.target.convention.value
    files = configuration_files(config, plan.ignore, "nvfp4", layout)
    has_input_scales = any(module.input_scale is not None for module in plan.modules)
    if not has_input_scales:
        document = json.loads(files["config.json"])
        document["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
        files["config.json"] = json.dumps(document, indent=2, sort_keys=True)
    for name, content in files.items():
        write_text(aside / name, content)


def _fingerprint(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file of weights and configuration."""
    found = {}
    for pattern in ("*.safetensors", "*.json"):
        for path in directory.glob(pattern):
            status = os.stat(path)
            found[path.name] = (status.st_size, status.st_mtime_ns)
    return found
