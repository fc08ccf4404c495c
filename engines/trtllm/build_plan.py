"""What `nybble build` is going to do and why, decided and refused before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.checkpoint.tensors import Fp4Tensors
from engines.convert.errors import NoInputScales
from engines.convert.options import ConvertOptions, Target
from engines.convert.plan import check_source, make_plan
from engines.errors import InvalidRequest, UnsupportedCheckpoint
from engines.quantize.options import CalibrationOptions
from engines.trtllm.build_workspace import staging_directory
from engines.trtllm.checkpoint_config import checkpoint_config
from engines.trtllm.checkpoint_writer import check_heads, check_ranks
from engines.trtllm.errors import BuildRefused
from engines.trtllm.fused_scales_check import require_equal_scales
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_budget import MemoryBudget, memory_budget
from engines.trtllm.pytorch_config import llm_options, serve_argv
from engines.trtllm.targets import AUTO, resolve_target
from engines.trtllm.trtllm_build import build_argv
from engines.trtllm.versions import LAST_WITH_TENSORRT_ENGINES, features_of

PATHS = (AUTO, "engine", "pytorch")
KV_CACHE_DTYPES = (AUTO, "bfloat16", "fp8")
_FIRST_PREFERRING_PYTORCH = Version("1.3.0rc0")
_DEFAULT_BATCH_SIZE = 64
_DEFAULT_NUM_TOKENS = 8192
_DEFAULT_SEQ_LEN = 32768


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the user asks. None and "auto" leave the choice to the plan; `target` names a device.

    `num_canaries` prompts are answered by the CPU engine and kept in the manifest; 0 for none.
    """

    source: Path
    destination: Path
    target: str = AUTO
    path: str = AUTO
    tensor_parallel: int = 1
    max_batch_size: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    kv_cache_dtype: str = AUTO
    tensorrt_llm_version: str | None = None
    calibration: CalibrationOptions | None = None
    num_canaries: int = 4


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
    _check_request(request)
    device = resolve_target(request.target, machine)
    version = _version(request, machine)
    path, path_reason = _choose_path(request.path, version)
    checkpoint = Checkpoint.open(request.source)
    conversion = _conversion(request, checkpoint)
    options = _options(request, checkpoint)
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
        notes=tuple(_notes(checkpoint, device, version, path, options, budget, llm)),
    )


def _check_request(request: BuildRequest) -> None:
    for name, value, allowed in (
        ("--path", request.path, PATHS),
        ("--kv-cache-dtype", request.kv_cache_dtype, KV_CACHE_DTYPES),
    ):
        if value not in allowed:
            raise InvalidRequest(f"{name} {value!r:.50} is unknown; expected one of: {', '.join(allowed)}")
    for name, number in (
        ("--tensor-parallel", request.tensor_parallel),
        ("--max-batch-size", request.max_batch_size),
        ("--max-seq-len", request.max_seq_len),
        ("--max-num-tokens", request.max_num_tokens),
    ):
        if number is not None and number < 1:
            raise InvalidRequest(f"{name} is {number}; expected at least 1")
    if request.num_canaries < 0:
        raise InvalidRequest(f"--canaries is {request.num_canaries}; expected 0 or more")


def _version(request: BuildRequest, machine: Machine) -> Version:
    text = request.tensorrt_llm_version or machine.tensorrt_llm_version
    if text is None:
        raise InvalidRequest(
            "tensorrt-llm is not installed here; name the release to plan for: --tensorrt-llm-version 1.2.1"
        )
    try:
        version = Version(text)
    except InvalidVersion:
        raise InvalidRequest(
            f"--tensorrt-llm-version {text!r:.50} is no version; expected for example 1.2.1"
        ) from None
    features_of(text)
    return version


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


def _options(request: BuildRequest, checkpoint: Checkpoint) -> BuildOptions:
    config = checkpoint.config
    context = config.max_position_embeddings
    if config.sliding_window is not None:
        # TensorRT-LLM would attend to everything: right only while nothing lies beyond the window.
        context = min(context, config.sliding_window)
    max_seq_len = min(context, _DEFAULT_SEQ_LEN) if request.max_seq_len is None else request.max_seq_len
    if not 2 <= max_seq_len <= context:
        window = f", sliding window {config.sliding_window}" if config.sliding_window is not None else ""
        raise InvalidRequest(
            f"--max-seq-len is {max_seq_len}; expected 2 to {context} "
            f"(max_position_embeddings {config.max_position_embeddings}{window})"
        )
    declared = checkpoint.quantization.kv_cache if checkpoint.quantization is not None else None
    kv_cache_dtype = request.kv_cache_dtype
    if kv_cache_dtype == AUTO:
        kv_cache_dtype = "fp8" if declared == "FP8" else "bfloat16"
    elif kv_cache_dtype == "bfloat16" and declared == "FP8":
        raise InvalidRequest(
            "--kv-cache-dtype bfloat16: the checkpoint declares an FP8 KV cache, and TensorRT-LLM follows it"
        )
    max_batch_size = request.max_batch_size or _DEFAULT_BATCH_SIZE
    max_num_tokens = request.max_num_tokens or max(_DEFAULT_NUM_TOKENS, max_batch_size)
    if max_num_tokens < max_batch_size:
        raise InvalidRequest(
            f"--max-num-tokens {max_num_tokens} is below --max-batch-size {max_batch_size}; every running "
            "sequence needs a token in each step"
        )
    return BuildOptions(request.tensor_parallel, max_batch_size, max_seq_len, max_num_tokens, kv_cache_dtype)


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


def _notes(
    checkpoint: Checkpoint,
    device: Device,
    version: Version,
    path: str,
    options: BuildOptions,
    budget: MemoryBudget,
    llm: dict[str, Any],
) -> list[str]:
    """What the user should know: what changes, what is untried."""
    notes = []
    config = checkpoint.config
    if checkpoint.layout in (Layout.COMPRESSED_TENSORS_MXFP4, Layout.COMPRESSED_TENSORS_MIXED):
        notes.append(
            "weights stay bit-equal; activations change from MXFP4 (blocks of 32, power-of-two scales) to "
            "NVFP4 (blocks of 16, E4M3 scales under a calibrated scale), so logits are near the source's, "
            "not equal: judge them with `nybble compare`"
        )
    if not config.num_experts and checkpoint.layout is not Layout.PLAIN:
        notes.append(f"{config.architecture} in NVFP4 is not in NVIDIA's tested matrix: check its accuracy")
    if path == "engine" and device.name == "gb10":
        notes.append("no report of a Mistral or Mixtral NVFP4 engine on a GB10 is known")
    if device.unified_memory:
        notes.append(
            "memory is shared with the operating system and counted once; before a build or a start, drop "
            "the page cache (sync; echo 3 > /proc/sys/vm/drop_caches)"
        )
    if path == "engine" and device.unified_memory and 3 * budget.weight_bytes > device.memory_bytes:
        notes.append("trtllm-build holds the weights up to three times; it may run out of this memory")
    if config.num_experts and device.name == "gb10" and version < Version("1.3.0rc13"):
        notes.append(f"NVFP4 experts are slow on GB10 before 1.3.0rc13; {version} may have the old kernels")
    if "nvfp4_gemm_config" in llm:
        notes.append(
            "cuBLASLt is forced for dense FP4, because CUTLASS overflowed shared memory before 1.3.0rc13"
        )
    quantization = checkpoint.quantization
    if options.kv_cache_dtype == "fp8" and quantization and quantization.kv_cache is None:
        notes.append("the checkpoint has no KV cache scales; FP8 will use a scale of 1")
    num_full = budget.num_kv_tokens // options.max_seq_len
    if num_full < options.max_batch_size:
        notes.append(
            f"the KV cache holds {num_full:,} sequences of full length, fewer than --max-batch-size "
            f"{options.max_batch_size}; longer ones will wait"
        )
    return notes
