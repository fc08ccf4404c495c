"""What `nybble build` is going to do and why, decided and refused before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.checkpoint.tensors import Fp4Tensors
from engines.convert.errors import NoInputScales
from engines.convert.options import ConvertOptions, Target
from engines.convert.plan import check_source, make_plan
from engines.errors import InvalidRequest, UnsupportedCheckpoint
from engines.trtllm.build_notes import build_notes
from engines.trtllm.build_request import BuildRequest, check_request, resolve_options, resolve_version
from engines.trtllm.build_workspace import staging_directory
from engines.trtllm.checkpoint_config import checkpoint_config
from engines.trtllm.checkpoint_writer import check_heads, check_ranks
from engines.trtllm.errors import BuildRefused
from engines.trtllm.fused_scales_check import require_equal_scales
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_budget import MemoryBudget, memory_budget
from engines.trtllm.pytorch_config import llm_options, serve_argv
from engines.trtllm.targets import resolve_target
from engines.trtllm.trtllm_build import build_argv
from engines.trtllm.versions import LAST_WITH_TENSORRT_ENGINES

_FIRST_PREFERRING_PYTORCH = Version("1.3.0rc0")


@dataclass(frozen=True, slots=True, eq=False)
class BuildPlan:
    """`argv` is trtllm-build's on the path "engine", trtllm-serve's on "pytorch"; `llm_options` is empty on
    "engine". `conversion` is None when the source is modelopt's NVFP4 already."""

    request: BuildRequest
    checkpoint: Checkpoint
    device: Device
    version: Version
    path: Literal["engine", "pytorch"]
    path_reason: str
    options: BuildOptions
    budget: MemoryBudget
    conversion: ConvertOptions | None
    argv: tuple[str, ...]
    llm_options: dict[str, Any]
    steps: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def staging(self) -> Path:
        """Where the work is done, beside the destination."""
        return staging_directory(self.request.destination)


def make_build_plan(request: BuildRequest, machine: Machine) -> BuildPlan:
    """Plan a build for `machine` or another one. Reads all block scales; writes nothing.

    Raises BuildRefused, InvalidRequest, CheckpointError, and ConversionError where a transcode would not be
    lossless or lacks a calibration.
    """
    check_request(request)
    device = resolve_target(request.target, machine)
    version = resolve_version(request, machine)
    path, path_reason = _choose_path(request.path, version)
    checkpoint = Checkpoint.open(request.source)
    conversion = _conversion(request, checkpoint)
    options = resolve_options(request, checkpoint, path)
    budget = memory_budget(checkpoint, device, options)
    staging = staging_directory(request.destination)
    if path == "engine":
        check_ranks(checkpoint, options.tensor_parallel, converted_later=conversion is not None)
        checkpoint_config(  # refuses what the format cannot carry
            checkpoint.config,
            tensor_parallel=options.tensor_parallel,
            kv_cache_dtype=options.kv_cache_dtype,
            exclude=(),
        )
        argv = build_argv(
            staging / "trtllm_checkpoint",
            staging / "engine",
            options,
            fp8_context=options.kv_cache_dtype == "fp8" and _output_projections_are_fp4(checkpoint),
        )
        llm: dict[str, Any] = {}
    else:
        check_heads(checkpoint, options.tensor_parallel)
        if conversion is None:
            require_equal_scales(checkpoint)
        argv = serve_argv(request.destination, options)
        llm = llm_options(checkpoint, device, version, options, budget)
    return BuildPlan(
        request=request,
        checkpoint=checkpoint,
        device=device,
        version=version,
        path=path,
        path_reason=path_reason,
        options=options,
        budget=budget,
        conversion=conversion,
        argv=argv,
        llm_options=llm,
        steps=_steps(request, path, conversion, options),
        notes=build_notes(checkpoint, device, version, path, options, budget, llm),
    )


def _choose_path(asked: str, version: Version) -> tuple[Literal["engine", "pytorch"], str]:
    if asked == "engine" and version > LAST_WITH_TENSORRT_ENGINES:
        raise BuildRefused(
            f"TensorRT-LLM {version} has no trtllm-build ({LAST_WITH_TENSORRT_ENGINES} was the last); "
            "use --path pytorch, or a release from 1.0 to 1.2"
        )
    if asked == "engine":
        return "engine", f"asked for; TensorRT-LLM {version} has trtllm-build"
    if asked == "pytorch":
        return "pytorch", "asked for"
    if version < _FIRST_PREFERRING_PYTORCH:
        return "engine", f"TensorRT-LLM {version} is of the line 1.0 to 1.2, which builds TensorRT engines"
    if version <= LAST_WITH_TENSORRT_ENGINES:
        return "pytorch", (
            f"TensorRT-LLM {version} still has trtllm-build, but deprecated; its PyTorch backend loads the "
            "checkpoint itself (--path engine insists)"
        )
    return (
        "pytorch",
        f"{version} has no trtllm-build any more; its PyTorch backend loads the checkpoint itself",
    )


def _conversion(request: BuildRequest, checkpoint: Checkpoint) -> ConvertOptions | None:
    """What `nybble convert` has to do first; refused here, before any work, where it would lose something."""
    if checkpoint.layout is Layout.PLAIN:
        raise UnsupportedCheckpoint(
            f"{request.source}: is not quantised; make an FP4 checkpoint of it first: "
            "nybble quantize SRC DST --format nvfp4 --layout modelopt --calibration FILE.jsonl"
        )
    if checkpoint.layout is Layout.MODELOPT_NVFP4:
        if request.calibration is not None:
            raise InvalidRequest(
                f"--calibration: {request.source} is modelopt's NVFP4 already and brings its input scales"
            )
        return None
    destination = staging_directory(request.destination) / "prepared"
    options = ConvertOptions(request.source, destination, Target.NVFP4_MODELOPT, request.calibration)
    check_source(checkpoint, options)
    make_plan(checkpoint, options, lambda _: None)
    lacking = [
        module.name
        for module in checkpoint.modules()
        if isinstance(module, Fp4Tensors) and module.input_scale is None
    ]
    if request.calibration is None and lacking:
        raise NoInputScales(
            f"{lacking[0]}: has no input scale, which NVFP4 activations need; pass --calibration FILE.jsonl "
            "(lines with text, messages or input_ids, typical of what will be asked)"
        )
    return options


def _output_projections_are_fp4(checkpoint: Checkpoint) -> bool:
    return all(
        isinstance(checkpoint.linear(f"model.layers.{layer}.self_attn.o_proj"), Fp4Tensors)
        for layer in range(checkpoint.config.num_layers)
    )


def _steps(
    request: BuildRequest, path: str, conversion: ConvertOptions | None, options: BuildOptions
) -> tuple[str, ...]:
    steps = []
    if conversion is not None:
        calibrated = " with input scales from the calibration" if conversion.calibration else ""
        steps.append(f"convert to modelopt's NVFP4{calibrated}; every weight is compared bit by bit")
    if path == "engine":
        ranks = f" for {options.tensor_parallel} ranks" if options.tensor_parallel > 1 else ""
        steps.append(f"write TensorRT-LLM's checkpoint{ranks} and read it back bit by bit")
        steps.append("run trtllm-build")
    else:
        steps.append("link the checkpoint's files, add hf_quant_config.json and llm_options.yaml")
    if request.num_canaries:
        steps.append(f"ask the CPU engine for {request.num_canaries} canary answers")
    steps.append("check the files and write build_manifest.json")
    return tuple(steps)
