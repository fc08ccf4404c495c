"""What a build depends on, as digests: the source's content, and everything that decides the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from engines.checkpoint.file_digest import file_digest
from engines.trtllm.build_plan import BuildPlan
from engines.trtllm.machine import Machine

_BUILDER = 1  # raise it when the same inputs give another result
_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
)


def source_files(plan: BuildPlan) -> tuple[Path, ...]:
    """Every file the result may depend on, the calibration's included."""
    found = {
        path
        for pattern in _PATTERNS
        for path in plan.request.source.glob(pattern)
        if path.is_file() and path.name != "reference.safetensors"
    }
    ordered = sorted(found)
    calibration = plan.request.calibration
    return (*ordered, calibration.file) if calibration is not None else tuple(ordered)


def source_fingerprint(plan: BuildPlan) -> str:
    """A digest of places, sizes and times: equal as long as nobody has touched the files."""
    described = []
    for path in source_files(plan):
        status = path.stat()
        described.append([str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino])
    return _digest(described)


def source_digests(plan: BuildPlan) -> dict[Path, str]:
    """SHA-256 of each source file; reads every byte."""
    return {path: file_digest(path) for path in source_files(plan)}


def combined_digest(digests: Mapping[Path, str]) -> str:
    """One digest for names and contents; where the directory lies does not matter."""
    return _digest(sorted((path.name, digest) for path, digest in digests.items()))


def build_key(plan: BuildPlan, source_digest: str, machine: Machine) -> str:
    """Equal for builds that would give the same result."""
    request, options = plan.request, plan.options
    calibration = request.calibration
    inputs = {
        "builder": _BUILDER,
        "source": source_digest,
        "calibration": None if calibration is None else [calibration.num_samples, calibration.max_length],
        "target": [plan.device.name, plan.device.sm],
        "path": plan.path,
        "tensorrt_llm": str(plan.version),
        # A TensorRT engine is bound to these, a prepared checkpoint is not.
        "machine": [machine.tensorrt_version, machine.cuda_version] if plan.path == "engine" else None,
        "options": [
            options.tensor_parallel,
            options.max_batch_size,
            options.max_seq_len,
            options.max_num_tokens,
            options.kv_cache_dtype,
            options.logprobs,
        ],
        "llm_options": plan.llm_options,
        "num_canaries": request.num_canaries,
    }
    return _digest(inputs)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
