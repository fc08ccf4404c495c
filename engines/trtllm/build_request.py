"""What the user asks of `nybble build`, checked, and completed from the checkpoint and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import InvalidRequest
from engines.quantize.options import CalibrationOptions
from engines.trtllm.machine import Machine
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.targets import AUTO
from engines.trtllm.versions import features_of

PATHS = (AUTO, "engine", "pytorch")
KV_CACHE_DTYPES = (AUTO, "bfloat16", "fp8")
LOGPROBS = ("none", "generated", "all")
_DEFAULT_BATCH_SIZE = 64
_DEFAULT_NUM_TOKENS = 8192
_DEFAULT_SEQ_LEN = 32768


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the user asks. None and "auto" leave the choice to the plan; `target` names a device.

    `logprobs`: which log-probabilities a TensorRT engine will be able to give (see BuildOptions).
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
    logprobs: str = "none"
    tensorrt_llm_version: str | None = None
    calibration: CalibrationOptions | None = None
    num_canaries: int = 4


def check_request(request: BuildRequest) -> None:
    """Names and numbers. Raises InvalidRequest."""
    for name, value, allowed in (
        ("--path", request.path, PATHS),
        ("--kv-cache-dtype", request.kv_cache_dtype, KV_CACHE_DTYPES),
        ("--logprobs", request.logprobs, LOGPROBS),
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


def resolve_version(request: BuildRequest, machine: Machine) -> Version:
    """The release asked for, else the installed one. Raises InvalidRequest, StartFailed."""
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


def resolve_options(request: BuildRequest, checkpoint: Checkpoint, path: str) -> BuildOptions:
    """The limits of the build: what was asked for, else what suits the model. Raises InvalidRequest."""
    if path != "engine" and request.logprobs != "none":
        raise InvalidRequest(
            f"--logprobs {request.logprobs} is for TensorRT engines (--path engine); the PyTorch backend "
            "gives log-probabilities without it"
        )
    max_batch_size = request.max_batch_size or _DEFAULT_BATCH_SIZE
    max_num_tokens = request.max_num_tokens or max(_DEFAULT_NUM_TOKENS, max_batch_size)
    if max_num_tokens < max_batch_size:
        raise InvalidRequest(
            f"--max-num-tokens {max_num_tokens} is below --max-batch-size {max_batch_size}; every running "
            "sequence needs a token in each step"
        )
    return BuildOptions(
        tensor_parallel=request.tensor_parallel,
        max_batch_size=max_batch_size,
        max_seq_len=_max_seq_len(request, checkpoint),
        max_num_tokens=max_num_tokens,
        kv_cache_dtype=_kv_cache_dtype(request, checkpoint),
        logprobs=request.logprobs,
    )


def _max_seq_len(request: BuildRequest, checkpoint: Checkpoint) -> int:
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
    return max_seq_len


def _kv_cache_dtype(request: BuildRequest, checkpoint: Checkpoint) -> str:
    declared = checkpoint.quantization.kv_cache if checkpoint.quantization is not None else None
    if request.kv_cache_dtype == AUTO:
        return "fp8" if declared == "FP8" else "bfloat16"
    if request.kv_cache_dtype == "bfloat16" and declared == "FP8":
        raise InvalidRequest(
            "--kv-cache-dtype bfloat16: the checkpoint declares an FP8 KV cache, and TensorRT-LLM follows it"
        )
    return request.kv_cache_dtype
