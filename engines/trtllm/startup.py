"""From options to a loaded model: every check that can be made before minutes of loading, then that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.base import EngineInfo, EngineOptions
from engines.checkpoint.checkpoint import Checkpoint
from engines.errors import StartFailed, UnsupportedCheckpoint
from engines.trtllm.guided_decoding import grammar_kinds, guided_decoding_arguments
from engines.trtllm.launch import detect_launch, gpus_per_node
from engines.trtllm.llm_arguments import (
    Limits,
    limits_of,
    llm_arguments,
    target_options,
    tensorrt_engine_arguments,
)
from engines.trtllm.machine import Gpu, Machine, detect_machine
from engines.trtllm.manifest import Manifest, has_manifest, load_for
from engines.trtllm.memory_guard import kv_cache_budget
from engines.trtllm.model_facts import ModelFacts, facts_of, read_engine_facts
from engines.trtllm.pytorch_config import read_llm_options
from engines.trtllm.runtime import Runtime, load_runtime
from engines.trtllm.suitability import OLDEST_FP4_SM, conversion_needed
from engines.trtllm.versions import features_of_tensorrt_engine

_logger = logging.getLogger(__name__)
_PROGRESS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before the model is loaded. `arguments` are those of `model_class`."""

    runtime: Runtime
    facts: ModelFacts
    limits: Limits
    gpu: Gpu
    manifest: Manifest | None
    kv_cache_tokens: int | None
    model_class: Any
    arguments: dict[str, Any]


def prepare(options: EngineOptions) -> Prepared:
    """Check machine, files, release and memory. Blocks: it imports TensorRT-LLM.

    Raises CheckpointError, MissingExtra, StartFailed.
    """
    if options.checkpoint is None:
        raise StartFailed("the engine 'trtllm' needs a checkpoint directory; none was given")
    launch = detect_launch()
    directory = options.checkpoint
    machine = detect_machine()
    manifest = load_for(directory, machine, launch) if has_manifest(directory) else None
    is_engine = manifest is not None and manifest.path == "engine"
    facts = read_engine_facts(directory) if is_engine else _checkpoint_facts(options, directory, machine)
    if manifest is not None:
        options = _within_the_build(options, manifest)
    limits = limits_of(options, facts)
    gpu = _gpu(machine)
    num_gpus_per_node = gpus_per_node(options, len(machine.gpus), launch)
    runtime = load_runtime()
    kv_cache_dtype = options.kv_cache_dtype if manifest is None else manifest.options.kv_cache_dtype
    budget = kv_cache_budget(
        options, facts, gpu, max_model_len=limits.max_model_len, kv_cache_dtype=kv_cache_dtype
    )
    if is_engine:
        assert manifest is not None
        features = features_of_tensorrt_engine(
            runtime.features, manifest.options.logprobs, prefix_caching=options.prefix_caching
        )
        runtime = replace(runtime, features=features)
        model_class = runtime.tensorrt_engine_class()
        arguments = tensorrt_engine_arguments(options, facts, limits, budget, runtime)
    else:
        model_class = runtime.llm_class
        target = read_llm_options(directory) or target_options(
            runtime.features.version, gpu.sm, facts, options.max_num_seqs
        )
        arguments = llm_arguments(options, facts, limits, budget, kv_cache_dtype, target, runtime)
        if options.structured_output:
            arguments.update(guided_decoding_arguments(directory, facts, runtime.llmapi))
    if launch.is_multi_node:
        arguments["gpus_per_node"] = num_gpus_per_node
    return Prepared(runtime, facts, limits, gpu, manifest, budget.max_tokens, model_class, arguments)


def describe(prepared: Prepared, num_blocks: int) -> EngineInfo:
    """The facts of the loaded model; `num_blocks` as the runtime says, 0 when it has not said so."""
    features, limits = prepared.runtime.features, prepared.limits
    if not num_blocks and prepared.kv_cache_tokens is not None:
        num_blocks = prepared.kv_cache_tokens // limits.tokens_per_block
    return EngineInfo(
        engine="trtllm",
        vocab_size=prepared.facts.vocab_size,
        max_model_len=limits.max_model_len,
        eos_token_ids=prepared.facts.eos_token_ids,
        block_size=limits.tokens_per_block,
        num_blocks=num_blocks,
        max_num_seqs=int(prepared.arguments["max_batch_size"]),
        max_num_logprobs=min(features.max_num_logprobs, prepared.facts.vocab_size),
        supports_prompt_logprobs=features.prompt_logprobs,
        grammar_kinds=grammar_kinds(prepared.arguments),
        details=(
            ("tensorrt_llm", str(features.version)),
            ("gpu", prepared.gpu.name),
            ("sm", str(prepared.gpu.sm)),
            ("tensor_parallel_size", str(prepared.arguments["tensor_parallel_size"])),
            ("pipeline_parallel_size", str(prepared.arguments.get("pipeline_parallel_size", 1))),
        ),
    )


async def wait_for_load(loading: asyncio.Future[Any], directory: Path | None) -> Any:
    """The loaded `LLM`, with a log line now and then. Raises StartFailed when the loading failed."""
    started = time.monotonic()
    while True:
        done, _ = await asyncio.wait({loading}, timeout=_PROGRESS_SECONDS)
        seconds = time.monotonic() - started
        if not done:
            _logger.info("TensorRT-LLM is loading %s: %.0f s so far", directory, seconds)
            continue
        error = loading.exception()
        if error is not None:
            raise _load_failure(error, directory) from error
        _logger.info("TensorRT-LLM has loaded %s in %.1f s", directory, seconds)
        return loading.result()


def _checkpoint_facts(options: EngineOptions, directory: Path, machine: Machine) -> ModelFacts:
    checkpoint = Checkpoint.open(directory)
    needed, command = conversion_needed(checkpoint, directory)
    if needed:
        raise UnsupportedCheckpoint(
            f"{directory} ({checkpoint.layout.value}) cannot be loaded by TensorRT-LLM as it is: "
            f"{'; '.join(needed)}. Run `{command}` and serve what it makes, or use --engine cpu"
        )
    if checkpoint.quantization is not None and machine.gpus and machine.gpus[0].sm < OLDEST_FP4_SM:
        raise StartFailed(
            f"{machine.gpus[0].name} (SM {machine.gpus[0].sm}) has no FP4 tensor cores; expected SM "
            f"{OLDEST_FP4_SM} or newer (Blackwell). Use --engine cpu"
        )
    declared = checkpoint.quantization.kv_cache if checkpoint.quantization is not None else None
    if options.kv_cache_dtype == "bfloat16" and declared is not None:
        raise StartFailed(
            f"kv_cache_dtype is 'bfloat16', but {directory} declares a KV cache in {declared}, and "
            "TensorRT-LLM follows it; leave the option out, or use --engine cpu"
        )
    return facts_of(directory, checkpoint.config)


def _within_the_build(options: EngineOptions, manifest: Manifest) -> EngineOptions:
    """The build's limits where the user did not set lower ones, its layout in any case."""
    built = manifest.options
    if options.tensor_parallel_size not in (1, built.tensor_parallel):
        raise StartFailed(
            f"tensor_parallel_size is {options.tensor_parallel_size}, but {options.checkpoint} was built for "
            f"{built.tensor_parallel}; leave the option out or build again"
        )
    if options.kv_cache_dtype not in ("auto", built.kv_cache_dtype):
        raise StartFailed(
            f"kv_cache_dtype is {options.kv_cache_dtype!r}, but {options.checkpoint} was built for "
            f"{built.kv_cache_dtype!r}; leave the option out or build again with --kv-cache-dtype"
        )
    if manifest.path == "engine" and options.pipeline_parallel_size > 1:
        raise StartFailed(
            f"pipeline_parallel_size is {options.pipeline_parallel_size}, but {options.checkpoint} is "
            "an engine in one stage; leave the option out, or build with --path pytorch"
        )
    if options.max_model_len is not None and options.max_model_len > built.max_seq_len:
        raise StartFailed(
            f"max_model_len is {options.max_model_len}, but {options.checkpoint} was built for at most "
            f"{built.max_seq_len} tokens; lower it or build again with --max-seq-len"
        )
    return replace(
        options,
        tensor_parallel_size=built.tensor_parallel,
        max_model_len=options.max_model_len or built.max_seq_len,
        max_num_seqs=min(options.max_num_seqs, built.max_batch_size),
        max_num_batched_tokens=built.max_num_tokens,
    )


def _gpu(machine: Machine) -> Gpu:
    if not machine.gpus:
        raise StartFailed(
            "the engine 'trtllm' needs an NVIDIA GPU, and nvidia-smi shows none; check the driver, pass the "
            "GPU to the container (--gpus all), or use --engine cpu"
        )
    return machine.gpus[0]


def _load_failure(error: BaseException, directory: Path | None) -> StartFailed:
    text = " ".join(str(error).split())[:500]
    if any(_is_out_of_memory(cause) for cause in _chain(error)):
        return StartFailed(
            f"out of memory while TensorRT-LLM loaded {directory}: {text}. End other programs on the GPU, "
            "lower --max-model-len, --max-num-seqs or --kv-cache-memory, or split the model with "
            "--tensor-parallel-size; on GB10 drop the page cache first "
            "(sync; echo 3 > /proc/sys/vm/drop_caches)"
        )
    return StartFailed(f"TensorRT-LLM could not load {directory}: {type(error).__name__}: {text}")


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
