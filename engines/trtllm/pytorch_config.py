"""`llm_options.yaml`: how the PyTorch backend has to be set up, for our engine and for trtllm-serve alike.

The content is JSON, which is YAML too, so it needs no YAML library here. Names are those of LLM's arguments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packaging.version import Version

from engines.capacity.devices import Device
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.trtllm.llm_arguments import target_options
from engines.trtllm.manifest import BuildOptions
from engines.trtllm.memory_budget import MemoryBudget
from engines.trtllm.model_facts import facts_of

LLM_OPTIONS_FILE = "llm_options.yaml"
_FIRST_WITH_GEMM_BACKENDS = Version("1.2.0")


def llm_options(
    checkpoint: Checkpoint, device: Device, version: Version, options: BuildOptions, budget: MemoryBudget
) -> dict[str, Any]:
    """The arguments for LLM(...) and trtllm-serve, limits included, so that no default applies."""
    assert device.sm is not None
    facts = facts_of(checkpoint.directory, checkpoint.config)
    for_target = target_options(version, device.sm, facts, options.max_batch_size)
    if version < _FIRST_WITH_GEMM_BACKENDS:
        for_target.pop("nvfp4_gemm_config", None)
    # Without a dtype it is the checkpoint's, bfloat16 then; the oldest releases do not know the field.
    kv_cache_dtype = {"dtype": "fp8"} if options.kv_cache_dtype == "fp8" else {}
    return {
        "tensor_parallel_size": options.tensor_parallel,
        "max_batch_size": options.max_batch_size,
        "max_seq_len": options.max_seq_len,
        "max_num_tokens": options.max_num_tokens,
        # Without it a prompt longer than max_num_tokens is refused.
        "enable_chunked_prefill": options.max_seq_len > options.max_num_tokens,
        "kv_cache_config": {
            **kv_cache_dtype,
            "enable_block_reuse": True,
            "free_gpu_memory_fraction": budget.free_gpu_memory_fraction,
        },
        **for_target,
        "guided_decoding_backend": "xgrammar",
        "enable_iter_perf_stats": True,
        "print_iter_log": False,
    }


def write_llm_options(directory: Path, options: dict[str, Any]) -> None:
    """Write the file. OSError as the file system does."""
    (directory / LLM_OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def read_llm_options(directory: Path) -> dict[str, Any]:
    """What `nybble build` wrote into an engine directory; {} when it wrote none (a TensorRT engine).

    Raises MalformedCheckpoint for a file that is not JSON any more.
    """
    path = directory / LLM_OPTIONS_FILE
    return read_json_object(path) if path.exists() else {}


def serve_argv(directory: Path, options: BuildOptions) -> tuple[str, ...]:
    """trtllm-serve on the directory that `nybble build` makes; the limits stand here too, because its own
    command line has defaults."""
    return (
        "trtllm-serve",
        str(directory),
        "--backend",
        "pytorch",
        "--tp_size",
        str(options.tensor_parallel),
        "--max_batch_size",
        str(options.max_batch_size),
        "--max_num_tokens",
        str(options.max_num_tokens),
        "--max_seq_len",
        str(options.max_seq_len),
        "--extra_llm_api_options",
        str(directory / LLM_OPTIONS_FILE),
    )
